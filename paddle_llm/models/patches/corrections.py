"""What is wrong in PaddleNLP 3.0.0b4's networks, mended in one place by replacing methods. Each with its reason and test.

LLaMA
- Key-value heads that do not divide by the tensor-parallel degree: they are not matched with the queries of the rank
  (wrong shapes, or heads left out), and the gradients of the replicated projections are those of one rank alone.

ChatGLM2/3
- With flash attention the output [B, S, H] is read as [S, B, H]: samples of a batch are mixed.
- Recompute of the attention block (full_attn) fails in the backward pass: Paddle's older recompute, which it takes there
  alone, cannot give back a missing cache.
- In a pipeline, the rotary embedding is taken for position ids where none are given, and left out; recompute of whole
  layers is not done; in 16 bits the rotary angles are rounded before the cosine is taken, so that positions beyond 256
  are wrong; its weights lack the beginning of their names in one process; it makes a mask [B, 1, S, S] and sends it along.
- The rotary embedding gives queries and keys the type of its table (O1: float32): no fused attention takes them beside
  16-bit values.
- Its RMSNorm knows no fused one.

BLOOM, ChatGLM2/3
- Dropout of attention's probabilities: under tensor parallelism the heads of different ranks lose the same places, in BLOOM
  everywhere, in ChatGLM2 on a CPU and with flash attention. So do, on a CPU, the parts of a sequence of ChatGLM2.

ChatGLM-6B
- Flash attention: the types of queries, keys, values and mask differ (O1), so that Paddle computes without a fused kernel.
- The loss is computed inside `forward`; it takes the common criterion instead. The prefix mask may be given as the
  number of tokens of the prefix, one per sample, in place of S x S booleans.

Shapes: B batch, S sequence, N heads, D head width, H = N x D.
"""

from __future__ import annotations

import copy
from functools import partial, wraps
from types import MethodType
from typing import Any

import paddle
import paddle.nn.functional as F

from paddle_llm.families import FAMILIES
from paddle_llm.models.patches.attention_kernels import added_mask, checked_functional, fused_attention
from paddle_llm.models.patches.dropout_rng import named_random_state
from paddle_llm.models.patches.opt_glm_corrections import correct_glm, correct_opt, with_loss
from paddle_llm.models.patches.prefix_mask import prefix_mask
from paddle_llm.models.patches.rms_norm import offer_fused_norm, use_fused_norm
from paddle_llm.models.patches.segment_hooks import chatglm2_attention, install_segments, is_causal_marker
from paddle_llm.models.patches.segments import first_places, is_ends, packed_prefix_mask

_done: set[str] = set()
_CHATGLM2_PREFIX = FAMILIES["chatglm_v2"].base_prefix


def correct_models() -> None:
    """Replace methods of PaddleNLP's classes. Once; a second call does nothing."""
    if "models" in _done:
        return
    _done.add("models")
    _correct_bloom()
    _correct_chatglm()
    _correct_chatglm2()
    _correct_chatglm2_pipeline()
    correct_opt()
    correct_glm()
    install_segments()


def correct_network(model: Any, family: str) -> None:
    """Correct what depends on one network's layout and switches."""
    if family == "chatglm_v2" and model.config.use_fused_rms_norm:
        use_fused_norm(model)
    for layer in model.sublayers():
        if family == "llama" and getattr(layer, "kv_indices", None) is not None:
            _share_key_value_heads(layer)
        if family == "chatglm_v2" and hasattr(layer, "core_attention") and layer.config.use_flash_attention:
            layer.config = copy.copy(layer.config)
            layer.config.use_flash_attention = False  # its own branch, which mixes samples, is not taken
            layer.core_attention.forward = MethodType(chatglm2_attention(_flash_core_attention), layer.core_attention)


# ---- LLaMA ----------------------------------------------------------------------------------------------------------


def _share_key_value_heads(attention: Any) -> None:
    """Give each query head of this rank its key-value head, and make the shared projections' gradients those of all."""
    config = attention.config
    group = config.num_attention_heads // config.num_key_value_heads
    first = config.tensor_parallel_rank * attention.num_heads
    attention.kv_indices = paddle.to_tensor([(first + head) // group for head in range(attention.num_heads)])
    attention.num_key_value_groups = 1
    for linear in (attention.k_proj, attention.v_proj):
        linear.sequence_parallel = config.sequence_parallel
        linear.forward = MethodType(_shared_projection, linear)


def _shared_projection(linear: Any, hidden: paddle.Tensor) -> paddle.Tensor:
    """A projection whose weight every tensor-parallel rank holds and whose output each rank uses a part of.

    Backward, the gradients of its weight and of its input are sums over the ranks.
    """
    from paddle.distributed import fleet
    from paddle.distributed.collective import _c_identity

    group = fleet.get_hybrid_communicate_group().get_model_parallel_group()
    if linear.sequence_parallel:
        from paddle.distributed.fleet.utils.sequence_parallel_utils import AllGatherOp

        hidden = AllGatherOp.apply(hidden)
    else:
        hidden = _c_identity(hidden, group=group)
    return F.linear(hidden, _c_identity(linear.weight, group=group))


# ---- Dropout --------------------------------------------------------------------------------------------------------


def _correct_bloom() -> None:
    from paddlenlp.transformers.bloom import modeling

    attention, dropout_add = modeling.BloomAttention.forward, modeling.dropout_add

    def attention_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with named_random_state("local_seed"):
            return attention(self, *args, **kwargs)

    def replicated_dropout_add(*args: Any, **kwargs: Any) -> paddle.Tensor:
        with named_random_state("global_seed"):
            return dropout_add(*args, **kwargs)

    modeling.BloomAttention.forward = attention_forward
    modeling.dropout_add = replicated_dropout_add


# ---- ChatGLM2/3 -----------------------------------------------------------------------------------------------------


def _flash_core_attention(
    self: Any,
    query_SBND: paddle.Tensor,
    key_SBND: paddle.Tensor,
    value_SBND: paddle.Tensor,
    attention_mask: paddle.Tensor,
) -> paddle.Tensor:
    """Attention through Paddle's fused kernel; the mask is added to the scores, or says that it is the causal one. Returns [S, B, H]."""
    query, key, value = (tensor.transpose([1, 0, 2, 3]) for tensor in (query_SBND, key_SBND, value_SBND))
    length, batch = query_SBND.shape[:2]
    causal = is_causal_marker(attention_mask, length)
    with named_random_state("local_seed"):
        output_BSND = fused_attention(
            query,
            key,
            value,
            attn_mask=None if causal else attention_mask,
            is_causal=causal,
            dropout_p=self.config.attention_dropout,
            training=self.training,
        )
    output = output_BSND.transpose([1, 0, 2, 3]).reshape([length, batch, self.hidden_size_per_partition])
    return output.reshape([length * batch, -1]) if self.config.sequence_parallel else output


def _correct_chatglm2() -> None:
    from paddlenlp.transformers.chatglm_v2 import modeling

    modeling.recompute = partial(modeling.recompute, use_reentrant=False)
    modeling.seed_guard_context = named_random_state
    modeling.apply_rotary_pos_emb = _in_type_of_states(modeling.apply_rotary_pos_emb)
    offer_fused_norm(modeling.RMSNorm)


def _in_type_of_states(rotate: Any) -> Any:
    """The rotary embedding with results in the type of the states, whatever its table's type is (O1: float32)."""

    @wraps(rotate)
    def rotated(states: paddle.Tensor, table: paddle.Tensor) -> paddle.Tensor:
        result = rotate(states, table)
        return result if result.dtype == states.dtype else result.astype(states.dtype)

    return rotated


def _correct_chatglm2_pipeline() -> None:
    from paddle.distributed.fleet.recompute.recompute import recompute
    from paddlenlp.transformers.chatglm_v2 import modeling_pp

    block, parse, give = modeling_pp.GLMBlock, modeling_pp.parse_args, modeling_pp.return_args
    embed, words = modeling_pp.EmbeddingPipe.forward, modeling_pp.Embedding.forward

    def embedding_forward(self: Any, args: Any) -> Any:
        input_ids, mask, positions, *_ = parse(args)
        if positions is None:
            positions = paddle.arange(input_ids.shape[1]).expand(input_ids.shape)
        if mask is not None and not is_ends(mask):
            return embed(self, (input_ids, mask, positions))
        hidden = words(self, input_ids)
        if self.config.sequence_parallel:
            hidden = modeling_pp.ScatterOp.apply(hidden.reshape([-1, hidden.shape[-1]]))
        if mask is None:
            mask = paddle.zeros([1, 1, 1, 1], hidden.dtype)
        else:
            mask = added_mask(first_places(mask), hidden.dtype).unsqueeze([1, 2])
        table = modeling_pp.forward_impl(self, self.config.max_sequence_length, self.config.kv_channels // 2)
        return give(hidden, mask, positions, table[positions].transpose([1, 0, 2, 3]))

    def block_forward(self: Any, args: Any) -> Any:
        hidden, mask, positions, rotary, *_ = parse(args)

        def run(hidden: paddle.Tensor, mask: paddle.Tensor, rotary: paddle.Tensor) -> paddle.Tensor:
            return block.forward(self, hidden, mask, rotary, None, False)[0]

        whole = self.enable_recompute and self.config.recompute_granularity == "full" and not hidden.stop_gradient
        if whole and self.layer_number not in (self.config.no_recompute_layers or ()):
            hidden = recompute(run, hidden, mask, rotary, use_reentrant=self.config.recompute_use_reentrant)
        else:
            hidden = run(hidden, mask, rotary)
        return give(hidden, mask, positions, rotary)

    def rotary_cache(self: Any, seq_len: int, n_elem: int, base: int = 10000) -> paddle.Tensor:
        frequencies = 1.0 / (base ** (paddle.arange(0, n_elem, 2, dtype="float32") / n_elem))
        angles = paddle.outer(paddle.arange(seq_len, dtype="float32"), frequencies)
        return paddle.stack([angles.cos(), angles.sin()], axis=-1).astype(self.default_dtype)

    pipeline = modeling_pp.ChatGLMv2ForCausalLMPipe
    add_layer = pipeline.add_sequential_layer

    def add_named_layer(self: Any, layer: Any, name_prefix: str = "") -> None:
        add_layer(self, layer, f"{_CHATGLM2_PREFIX}{name_prefix}")

    pipeline.add_sequential_layer = add_named_layer
    modeling_pp.EmbeddingPipe.forward = embedding_forward
    modeling_pp.GLMBlockPipe.forward = block_forward
    modeling_pp.forward_impl = rotary_cache


# ---- ChatGLM-6B -----------------------------------------------------------------------------------------------------


def _correct_chatglm() -> None:
    from paddlenlp.transformers.chatglm import modeling

    modeling.F = checked_functional()
    forward = modeling.ChatGLMForCausalLM.forward

    def with_criterion(
        self: Any,
        input_ids: Any = None,
        position_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
        return_dict: bool = False,  # by name: PaddleNLP looks for it in the signature
        **others: Any,
    ) -> Any:
        packed = {name: others.pop(name, None) for name in ("segment_lengths", "prefix_lengths")}
        if packed["segment_lengths"] is not None:
            attention_mask = packed_prefix_mask(*packed.values(), input_ids.shape[1])
        elif attention_mask is not None and attention_mask.ndim == 2:
            attention_mask = prefix_mask(attention_mask, input_ids.shape[1])
        others.update(input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask)
        others["return_dict"] = return_dict
        if labels is None or getattr(self, "criterion", None) is None:
            return forward(self, labels=labels, **others)
        return with_loss(self, forward(self, **others), labels)

    modeling.ChatGLMForCausalLM.forward = with_criterion
