"""Corrections of Mistral (PaddleNLP 3.0.0b4).

- `sliding_window` is never read: every token sees all earlier ones.
- The mask contains -inf, so the row of a query that sees no key (padding on the left) becomes NaN.
- The embedding of `pad_token_id` is zero in one process, but not under tensor parallelism or in transformers.

Shapes: B rows, S queries, T keys.
"""

from __future__ import annotations

from typing import Any

import paddle

from paddle_llm.core.upstream import replace, replace_forward
from paddle_llm.models.patches.shared.attention_kernels import added_mask, checked_functional
from paddle_llm.models.patches.shared.forward import WHY_PACKED_ROWS, with_packed_rows
from paddle_llm.models.patches.shared.packed_rows import causal_within_samples, is_sample_ends


def apply() -> None:
    """Replace attributes of PaddleNLP's classes."""
    from paddlenlp.transformers.mistral import modeling

    model, network = modeling.MistralModel, modeling.MistralForCausalLM
    # Attention: window, packed rows, and kernels that require tensors of one type.
    why = f"It ignores sliding_window; rows of queries that see no key become NaN. {WHY_PACKED_ROWS}"
    replace(model, "_prepare_decoder_attention_mask", attention_mask, why)
    replace(modeling, "F", checked_functional(), "Its flash attention gets a mask of another type than the states.")
    # The network: packed rows and padding.
    replace_forward(network, with_packed_rows(network.forward, "attention_mask"), WHY_PACKED_ROWS)
    replace(model, "__init__", _init_without_padding(model.__init__), "The embedding of pad_token_id is zero.")


def attention_mask(
    self: Any, mask: paddle.Tensor | None, shape: Any, hidden: paddle.Tensor, cached: int
) -> paddle.Tensor | None:
    """Return the mask [B, 1, S, T] that is added to the scores; for `MistralModel._prepare_decoder_attention_mask`.

    Args:
        self: The network without its head.
        mask: Positions that hold a token [B, T], pairs of query and key [B, S, T] or [B, 1, S, T], `sample_ends` of
            packed rows [B, S], or None.
        shape: B and S.
        hidden: Embeddings; their type is that of the mask.
        cached: Number of cached tokens, T - S.

    Returns:
        The mask; None if flash attention's own causal mask is enough.
    """
    rows, length = shape
    total, window = length + cached, self.config.sliding_window
    if mask is None and self.config.use_flash_attention and not cached and (window is None or length <= window):
        return None
    seen = seen_within(length, total, window)
    if is_sample_ends(mask):
        seen = seen & causal_within_samples(mask)
    elif mask is not None:
        axes = {2: [1, 2], 3: [1], 4: []}[mask.ndim]
        seen = seen & (mask.unsqueeze(axes) if axes else mask).astype("bool")
    return added_mask(seen, hidden.dtype).expand([rows, 1, length, total])


def seen_within(length: int, total: int, window: int | None) -> paddle.Tensor:
    """Return which keys a query sees [1, 1, S, T]: its own and `window` - 1 before it (None: all before it)."""
    ones = paddle.ones([1, 1, length, total], dtype="bool")
    seen = paddle.tril(ones, diagonal=total - length)
    return seen if window is None else seen & paddle.triu(ones, diagonal=total - length - window + 1)


def _init_without_padding(create: Any) -> Any:
    def init_model(self: Any, config: Any) -> None:
        create(self, config)
        if config.tensor_parallel_degree == 1:
            self.embed_tokens._padding_idx = None

    return init_model
