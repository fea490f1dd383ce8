"""Corrections of Qwen2 (PaddleNLP 3.0.0b4)."""

from __future__ import annotations

from paddle_llm.models.patches.shared import cpu_attention
from paddle_llm.models.patches.shared.decoders import apply_shared


def apply() -> None:
    """Replace attributes of PaddleNLP's classes."""
    from paddlenlp.transformers.qwen2 import modeling, modeling_pp

    # Attention, masks and packed rows.
    apply_shared(
        modeling,
        modeling.Qwen2Model,
        modeling.Qwen2ForCausalLM,
        modeling_pp.Qwen2ForCausalLMPipe,
        cpu_attention.cached_attention,
    )
