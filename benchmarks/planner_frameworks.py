"""Memory of trainings with other frameworks: the planner's shapes and schedule with what each framework keeps.

Letters: h hidden size, f feed-forward width, k width of all keys (values), V vocabulary, all of a rank; bf16 is 2 bytes.
Each framework has at most one constant that was fitted, on the row that is named with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from paddle_llm.config.layout import Layout
from paddle_llm.families.facts import ModelFacts
from paddle_llm.planner.job import Job, Kernels, Method, Precision
from paddle_llm.planner.memory.schedule import steps_of
from paddle_llm.planner.shapes.weights import layer_weights, weights_of_stage

GIB = 2**30
_MIB = 2**20
# h, f, layers, query heads, key-value heads, vocabulary. KempnerForge's models have LLaMA-2's widths, the vocabulary of
# LLaMA-3 and 8 key-value heads; SimuMax's 405B has 16.
_SHAPES = {
    "mistral-7b": (4096, 14336, 32, 32, 8, 32000),
    "llama-3-8b": (4096, 14336, 32, 32, 8, 128256),
    "llama-2-7b": (4096, 11008, 32, 32, 32, 32000),
    "llama-2-13b": (5120, 13824, 40, 40, 40, 32000),
    "llama-2-70b": (8192, 28672, 80, 64, 8, 32000),
    "llama3-8b": (4096, 14336, 32, 32, 8, 128256),
    "llama3-70b": (8192, 28672, 80, 64, 8, 128256),
    "llama3-405b": (16384, 53248, 128, 128, 16, 128256),
    "kempner-7B": (4096, 11008, 32, 32, 8, 128256),
    "kempner-13B": (5120, 13824, 40, 40, 8, 128256),
    "kempner-70B": (8192, 28672, 80, 64, 8, 128256),
}


def facts_of(name: str, layers: int | None = None) -> ModelFacts:
    """Return the shape of a model of the tables."""
    h, f, depth, heads, groups, vocabulary = _SHAPES[name]
    return ModelFacts(
        model_type="llama",
        architectures=("LlamaForCausalLM",),
        hidden_size=h,
        num_hidden_layers=layers or depth,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=h // heads,
        intermediate_size=f,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )


@dataclass(frozen=True)
class Widths:
    """Widths of a rank: hidden size, queries, keys, feed-forward network, vocabulary."""

    h: int
    q: int
    k: int
    f: int
    v: int

    @classmethod
    def of(cls, job: Job) -> Widths:
        """Return the widths of a tensor-parallel rank."""
        facts, t = job.model, job.layout.tensor
        keys = facts.num_key_value_heads * facts.head_dim
        return cls(
            facts.hidden_size,
            facts.num_attention_heads * facts.head_dim // t,
            keys // t if facts.num_key_value_heads % t == 0 else keys,
            facts.intermediate_size // t,
            -(-facts.vocab_size // t),
        )


def _job(facts: ModelFacts, layout: Layout, **others: Any) -> Job:
    precision = Precision(weights="bfloat16", compute="bfloat16", master_weights=True)
    return Job(model=facts, layout=layout, precision=precision, kernels=Kernels(), **others)


def _elements(job: Job, stage: int) -> int:
    return sum(weight.size for weight in weights_of_stage(job, stage))


# ---- Megatron-LM with TransformerEngine -------------------------------------------------------------------------------

# cuBLAS and TransformerEngine allocate one workspace of 32 MiB each (Hopper and later).
_WORKSPACES = 64 * _MIB


def megatron(row: dict[str, str]) -> float:
    """Return the peak of a SimuMax row in GiB. Nothing is fitted.

    bf16 weights, fp32 gradients, states sharded by the distributed optimizer. TransformerEngine keeps one bf16 buffer of
    the size of each matrix of a layer, which its fused gradient accumulation returns to autograd (`get_dummy_wgrad`);
    Megatron allocates one for the head. Per layer, the inputs of both norms and their outputs are kept (divided by t with
    sequence parallelism), the fused output of query, key and value of which the values are a view, rotated queries and keys,
    the output of attention, and both sides and the output of SwiGLU.
    """
    tensor, pipeline, data = (int(row[key]) for key in ("tp", "pp", "dp"))
    layout = Layout(data=data, tensor=tensor, pipeline=pipeline, sequence_parallel=tensor > 1)
    facts = facts_of(row["model"], int(row["layers"]))
    job = _job(facts, layout, seq_length=int(row["seq"]), accumulation=int(row["micro_batches"]))
    w, tokens = Widths.of(job), int(row["seq"]) * int(row["micro_batch"])
    residual = w.h // tensor if layout.sequence_parallel else w.h
    layer = 2 * tokens * (4 * residual + (w.q + 2 * w.k) + (w.q + w.k) + w.q + 3 * w.f)
    dummies = 2 * sum(weight.size for weight in layer_weights(job, 0) if len(weight.shape) == 2)
    gathered = 2 * tokens * w.h if layout.sequence_parallel else 0
    peaks = []
    for stage in range(pipeline):
        steps = list(steps_of(stage, job))
        held = max(
            sum(kind == "forward" for kind, _ in steps[:end]) - sum(kind == "backward" for kind, _ in steps[:end])
            for end in range(1, len(steps) + 1)
        )
        kept = held * layer * (facts.num_hidden_layers // pipeline)
        # Backward of SwiGLU: the gradient of its output is still there when that of its inputs is allocated.
        working = 2 * tokens * 2 * w.f + 2 * tokens * w.h
        if stage == pipeline - 1:
            forward = 6 * tokens * w.v  # bf16 logits and their fp32 copy, which the fused loss overwrites
            backward = 2 * tokens * w.v + 2 * w.v * w.h  # bf16 gradient, buffer for the gradient of the head
            working = max(working, max(forward, backward) + gathered + 2 * tokens * w.h)
        states = _elements(job, stage) * (6 + 12 / data)
        peaks.append(states + dummies + kept + working + _WORKSPACES)
    return max(peaks) / GIB


# ---- Hugging Face's Trainer, PEFT, FSDP --------------------------------------------------------------------------------

# Hidden states that a layer holds in its backward pass beside the feed-forward network, in units of h bf16 numbers per
# token, without rotation in place. Fitted on one row: Mistral-7B, 4 GPUs, foak-fast-kernels-liger, 16 rows.
_HIDDEN_UNITS = 11.0


def hugging_face_lora(row: dict[str, str]) -> float:
    """Return the peak of a LoRA row of fms-acceleration in bytes.

    Weights in bf16, LoRA and its two moments in fp32. Gradient checkpointing keeps the input of each layer: in bf16 on one
    GPU, in fp32 under FSDP. FSDP gathers embedding and head for the whole step and one layer at a time. The peak is at the
    loss (one GPU: logits in fp32 and their shifted copy; FSDP: in bf16 and fp32; without the fused loss another copy in
    fp32), or in the backward pass of a layer: three tensors of the feed-forward network and their three gradients, and
    hidden states; on one GPU two more. Liger's fused loss has no logits and its rotation is in place (LLaMA only: the rows
    of Mistral with and without it are equal).
    """
    name, gpus = _model_name(row["model_name_or_path"]), int(float(row["num_gpus"]))
    rows, rank = int(float(row["per_device_train_batch_size"])), int(float(row["r"]))
    facts = facts_of(name)
    method = Method(name="lora", rank=rank, targets=tuple(row["target_modules"].split()))
    job = _job(facts, Layout(), seq_length=4096, micro_batch=rows, method=method)
    w, tokens = Widths.of(job), 4096 * rows
    weights = weights_of_stage(job, 0)
    base = sum(weight.size for weight in weights if not weight.trained)
    trained = sum(weight.size for weight in weights if weight.trained)
    outside = 2 * facts.vocab_size * w.h
    states = (2 * base + 12 * trained) / gpus
    kernels = row["framework_config"]
    liger = "liger" in kernels and name.startswith("llama")
    inputs = facts.num_hidden_layers * (4 if gpus > 1 else 2) * w.h * tokens
    gathered = 2 * outside if gpus > 1 else 0
    layer = 2 * sum(weight.size for weight in layer_weights(job, 0)) if gpus > 1 else 0
    per_logit = 0 if liger else (6 if gpus > 1 else 8) + (0 if "foak" in kernels else 4)
    hidden = _HIDDEN_UNITS if gpus > 1 else _HIDDEN_UNITS + 2
    rotated = -2 * (w.q + 2 * w.k) * tokens if liger else 0
    backward = layer + inputs + 2 * tokens * (6 * w.f + hidden * w.h) + rotated
    loss = inputs + tokens * (per_logit * w.v + 4 * w.h)
    return states + gathered + max(backward, loss)


def _model_name(path: str) -> str:
    name = path.rpartition("/")[2].lower()
    return (
        "mistral-7b"
        if "mistral" in name
        else "llama-3-8b"
        if "llama-3" in name
        else "llama-2-70b"
        if "70b" in name
        else "llama-2-7b"
    )


# ---- KempnerForge: FSDP2 and tensor parallelism -------------------------------------------------------------------------

# Tensors of the size of the hidden states that full recompute keeps per layer. Fitted on one row: 7B, 8 GPUs.
_KEPT_PER_LAYER = 3


def kempnerforge(row: dict[str, str]) -> float:
    """Return the peak of a KempnerForge row in GB.

    Weights, gradients and both moments in bf16, all sharded. Logits of the whole vocabulary in bf16 and fp32. Embedding and
    head are gathered over the FSDP group.
    """
    degrees = dict(re.findall(r"(TP|FSDP|PP)=(\d+)", row["layout"]))
    tensor, sharding = int(degrees.get("TP", 1)), int(degrees.get("FSDP", 1))
    facts = facts_of(f"kempner-{row['model']}")
    job = _job(facts, Layout(tensor=tensor), seq_length=int(row["seq"]))
    tokens = int(row["seq"]) * int(row["batch"].split("x")[0])
    states = 8 * _elements(job, 0) / sharding
    kept = _KEPT_PER_LAYER * 2 * tokens * facts.hidden_size * facts.num_hidden_layers
    logits = 6 * tokens * facts.vocab_size
    gathered = 2 * 2 * facts.vocab_size * facts.hidden_size / tensor
    return (states + kept + logits + gathered) / 1e9
