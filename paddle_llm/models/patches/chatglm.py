"""Corrections of ChatGLM-6B (PaddleNLP 3.0.0b4).

- Flash attention: the types of queries, keys, values and mask differ (O1), so that Paddle computes without a fused
  kernel.
- The loss is computed inside `forward`. It is replaced with `CausalLMLoss`, as for every family. The prefix mask may be
  given as the number of tokens of each sample's prefix instead of S x S booleans.
"""

from __future__ import annotations

from typing import Any

from paddle_llm.core.upstream import replace
from paddle_llm.models.patches.shared.attention_kernels import checked_functional
from paddle_llm.models.patches.shared.forward import with_loss
from paddle_llm.models.patches.shared.packed_rows import packed_prefix_mask, prefix_mask


def apply() -> None:
    """Replace attributes of PaddleNLP's classes."""
    from paddlenlp.transformers.chatglm import modeling

    network = modeling.ChatGLMForCausalLM
    replace(modeling, "F", checked_functional(), "Under O1 its flash attention gets tensors of different types.")
    replace(
        network,
        "forward",
        _with_common_loss(network.forward),
        "Its loss is not the mean over labels; it does not support packed rows.",
    )


def _with_common_loss(forward: Any) -> Any:
    def forward_with_loss(
        self: Any,
        input_ids: Any = None,
        position_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
        return_dict: bool = False,  # named, because PaddleNLP looks for it in the signature
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

    return forward_with_loss
