"""The kernels of one layer, of the embedding and of the head, on one rank.

Matrix products are those of the matrices that the rank holds (`planner/shapes`), of a method of fine-tuning too. A pass is one
reading or writing of an activation. Passes of the backward pass are twice those of the forward pass.

Legend: T tokens of a micro-batch, h hidden size, N query heads and G key-value heads of this rank, D head width, F width of
the MLP on this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from paddle_llm.families import FAMILIES
from paddle_llm.planner.job import BYTES, Job
from paddle_llm.planner.shapes.weights import RankWeight, head_weights, layer_weights
from paddle_llm.planner.time.kernels import Product, Work

# (passes, kernels) of one norm: a fused kernel, and PaddleNLP's RMSNorm of single operations, which computes in fp32.
_FUSED_NORM, _PLAIN_RMS_NORM = (2.0, 1), (18.0, 7)
# (passes over query and key, kernels) of rotary positions: fused, and PaddleNLP's single operations on both.
_FUSED_ROPE, _PLAIN_ROPE = (2.0, 1), (13.0, 12)
_LOSS_BYTES = 20, 12  # per logit: forward and backward pass of the cross-entropy in fp32
_LOSS_KERNELS = 12, 6


@dataclass(frozen=True)
class Layer:
    """The passes of one layer.

    Attributes:
        forward: Forward pass.
        backward: Backward pass, with what it computes again.
        gradient: Backward pass of a layer that is not recomputed.
    """

    forward: Work
    backward: Work
    gradient: Work


def layer_work(job: Job, number: int) -> Layer:
    """Return the kernels of a layer.

    Args:
        job: Training.
        number: Number of the layer.
    """
    weights = layer_weights(job, number)
    attention, mlp = _attention_block(job, weights, backward=False), _mlp_block(job, weights, backward=False)
    core, core_gradient = _core(job)
    forward = attention + core + mlp
    gradient = _attention_block(job, weights, backward=True) + core_gradient + _mlp_block(job, weights, backward=True)
    again = {"none": Work(), "full": forward, "full_attn": attention + core, "core_attn": core}[job.recompute.part]
    return Layer(forward, gradient + again, gradient)


def _of_attention(job: Job, weight: RankWeight) -> bool:
    program = FAMILIES[job.model.model_type].static_program
    parts = {part.split(".")[0] for part in (*program.qkv, program.out)}
    return bool(parts & set(weight.name.split(".")))


def _products(job: Job, weights: list[RankWeight], backward: bool) -> tuple[Product, ...]:
    tokens = job.micro_batch * job.seq_length
    found: list[Product] = []
    for weight in weights:
        if len(weight.shape) == 2:
            product = Product(tokens, weight.shape[1], weight.shape[0])
            found += product.backward(weight.trained) if backward else [product]
    return tuple(found)


def _added(job: Job, weights: list[RankWeight], backward: bool) -> Work:
    """Return the element-wise kernels of low-rank matrices: scaling, adding to the output, dropout of the input."""
    tokens, size = job.micro_batch * job.seq_length, BYTES[job.precision.compute]
    outputs = [weight.shape[1] for weight in weights if weight.added and weight.name.endswith(("lora_B", "adapter_up"))]
    factor = 2 if backward else 1
    return Work(traffic=factor * 5.0 * tokens * size * sum(outputs), kernels=factor * 2.0 * len(outputs))


def _messages(job: Job) -> Work:
    """Return the collectives at the end of a block, and with sequence parallelism at its beginning too."""
    if job.layout.tensor == 1:
        return Work()
    size = job.micro_batch * job.seq_length * job.model.hidden_size * BYTES[job.precision.compute]
    return Work(gathered=(size, size)) if job.layout.sequence_parallel else Work(reduced=(size,))


def _around(job: Job, backward: bool) -> Work:
    """Return the norm of a block and its residual addition, with dropout."""
    facts = job.model
    program = FAMILIES[facts.model_type].static_program
    tokens = job.micro_batch * job.seq_length / (job.layout.tensor if job.layout.sequence_parallel else 1)
    plain = program.rms_norm and not job.kernels.fused_rms_norm
    passes, kernels = _PLAIN_RMS_NORM if plain else _FUSED_NORM
    passes += 3.5 if job.hidden_dropout else 3.0  # the mask of the dropout has one byte
    factor = 2 if backward else 1
    traffic = factor * passes * tokens * facts.hidden_size * BYTES[job.precision.compute]
    return Work(traffic=traffic, kernels=factor * (kernels + 1))


def _attention_block(job: Job, weights: tuple[RankWeight, ...], backward: bool) -> Work:
    """Return a norm, the projections, rotary positions and the residual addition, without the attention product."""
    mine = [weight for weight in weights if _of_attention(job, weight)]
    facts = job.model
    tokens, size = job.micro_batch * job.seq_length, BYTES[job.precision.compute]
    queries, pairs = _heads(job)
    passes, kernels = 2.0, 3  # to separate heads, and to join them
    traffic = passes * (2 * queries + 2 * pairs) * facts.head_dim
    if FAMILIES[facts.model_type].static_program.rotary is not None:
        rope_passes, rope_kernels = _FUSED_ROPE if job.kernels.fused_rope else _PLAIN_ROPE
        traffic += rope_passes * (queries + pairs) * facts.head_dim
        kernels += rope_kernels
    factor = 2 if backward else 1
    moved = Work(traffic=factor * traffic * tokens * size, kernels=factor * kernels)
    around = _around(job, backward) + _added(job, mine, backward) + _messages(job)
    return Work(_products(job, mine, backward)) + moved + around


def _mlp_block(job: Job, weights: tuple[RankWeight, ...], backward: bool) -> Work:
    """Return a norm, the MLP and the residual addition."""
    mine = [weight for weight in weights if not _of_attention(job, weight)]
    facts = job.model
    tokens, size = job.micro_batch * job.seq_length, BYTES[job.precision.compute]
    passes = 3.0 if FAMILIES[facts.model_type].static_program.activation == "swiglu" else 2.0
    factor = 2 if backward else 1
    traffic = factor * passes * tokens * facts.intermediate_size / job.layout.tensor * size
    around = _around(job, backward) + _added(job, mine, backward) + _messages(job)
    return Work(_products(job, mine, backward), traffic=traffic, kernels=factor) + around


def _heads(job: Job) -> tuple[float, float]:
    """Return the query heads and key-value heads of a rank; heads that cannot be divided are copied."""
    facts, tensor = job.model, job.layout.tensor
    groups = facts.num_key_value_heads
    return facts.num_attention_heads / tensor, groups / tensor if groups % tensor == 0 else float(groups)


def _core(job: Job) -> tuple[Work, Work]:
    """Return the forward and backward pass of the attention product. Fused kernels skip what a causal mask hides."""
    s, d = job.seq_length, job.model.head_dim
    pairs = job.micro_batch * _heads(job)[0]
    if job.kernels.flash_attention:
        flops = 4.0 * pairs * s * s * d / 2
        return Work(flash=flops, kernels=1), Work(flash=2.5 * flops, kernels=3)
    scores, context = Product(s, s, d, pairs), Product(s, d, s, pairs)
    size = BYTES[job.precision.compute]
    passes = 2.0 + 2.5 * (job.attention_dropout > 0)  # softmax; dropout with a mask of one byte
    traffic, kernels = passes * pairs * s * s * size, 2.0 + (job.attention_dropout > 0)
    return (
        Work((scores, context), traffic=traffic, kernels=kernels),
        Work(scores.backward() + context.backward(), traffic=1.5 * traffic, kernels=2 * kernels),
    )


def head_work(job: Job) -> tuple[Work, Work]:
    """Return the forward and backward pass of the head and the loss."""
    tokens, facts = job.micro_batch * job.seq_length, job.model
    columns = -(-facts.vocab_size // job.layout.tensor)
    trained = any(weight.trained for weight in head_weights(job)) if head_weights(job) else job.method.name == "full"
    product = Product(tokens, columns, facts.hidden_size)
    logits = float(tokens * columns)
    forward = Work((product,), traffic=logits * _LOSS_BYTES[0], kernels=_LOSS_KERNELS[0])
    backward = Work(product.backward(trained), traffic=logits * _LOSS_BYTES[1], kernels=_LOSS_KERNELS[1])
    return forward, backward


def embedding_work(job: Job) -> tuple[Work, Work]:
    """Return the forward and backward pass of the embedding."""
    traffic = 4.0 * job.micro_batch * job.seq_length * job.model.hidden_size * BYTES[job.precision.compute]
    return Work(traffic=traffic, kernels=6), Work(traffic=traffic, kernels=4)


@lru_cache(maxsize=1024)
def first_trained_layer(job: Job) -> int:
    """Return the first layer with a trained weight; 0 if a weight before the layers is trained. Layers before need no backward pass."""
    if job.method.name in ("full", "prompt"):
        return 0
    layers = range(job.model.num_hidden_layers)
    return next((number for number in layers if any(one.trained for one in layer_weights(job, number))), len(layers))
