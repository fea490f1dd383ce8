"""Corrections of LLaMA (PaddleNLP 3.0.0b4)."""

from __future__ import annotations

from types import MethodType
from typing import Any

import paddle
import paddle.nn.functional as F

from paddle_llm.core.upstream import replace
from paddle_llm.models.patches.shared import cpu_attention, cpu_elementwise
from paddle_llm.models.patches.shared.decoders import apply_shared

_WHY_CPU = "It is slow on a CPU."


def apply() -> None:
    """Replace attributes of PaddleNLP's classes."""
    from paddlenlp.transformers.llama import modeling, modeling_pp

    model = modeling.LlamaModel
    # Attention, masks and packed rows.
    apply_shared(
        modeling, model, modeling.LlamaForCausalLM, modeling_pp.LlamaForCausalLMPipe, cpu_attention.decoder_attention
    )
    # Element-wise operations on a CPU. On other devices they are PaddleNLP's.
    replace(modeling.LlamaRMSNorm, "forward", cpu_elementwise.llama_norm(modeling.LlamaRMSNorm.forward), _WHY_CPU)
    replace(modeling, "apply_rotary_pos_emb", cpu_elementwise.rotary_embedding(modeling.apply_rotary_pos_emb), _WHY_CPU)
    replace(modeling, "swiglu", cpu_elementwise.swiglu(modeling.swiglu), _WHY_CPU)
    mask = staticmethod(cpu_attention.decoder_mask(model._prepare_decoder_attention_mask))
    replace(
        model, "_prepare_decoder_attention_mask", mask, f"{_WHY_CPU} In a pipeline it takes sample ends for a mask."
    )


def apply_to_network(model: Any) -> None:
    """Correct key-value heads that do not divide by the tensor-parallel degree.

    PaddleNLP does not match them with the queries of the rank (wrong shapes, or missing heads), and the gradients of
    the replicated projections are those of one rank.
    """
    for layer in model.sublayers():
        if getattr(layer, "kv_indices", None) is not None:
            _share_key_value_heads(layer)


def _share_key_value_heads(attention: Any) -> None:
    """Give each query head of this rank its key-value head, and sum the gradients of the shared projections."""
    config = attention.config
    group = config.num_attention_heads // config.num_key_value_heads
    first = config.tensor_parallel_rank * attention.num_heads
    attention.kv_indices = paddle.to_tensor([(first + head) // group for head in range(attention.num_heads)])
    attention.num_key_value_groups = 1
    for linear in (attention.k_proj, attention.v_proj):
        linear.sequence_parallel = config.sequence_parallel
        linear.forward = MethodType(_shared_projection, linear)


def _shared_projection(linear: Any, hidden: paddle.Tensor) -> paddle.Tensor:
    """Compute a projection whose weight every tensor-parallel rank holds and of whose output each rank uses a part.

    In the backward pass the gradients of its weight and of its input are summed over the ranks.
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
