"""Merges an adapter into the weights, and removes it again bit for bit.

Adding and subtracting would leave rounding errors in the weights (in bfloat16 everything smaller than a 256th of
them), so the old values are kept in host memory: as many bytes as the merged matrices have.
"""

from __future__ import annotations

from typing import Any

import paddle

from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.names import EMBEDDINGS, is_tied
from paddle_llm.peft.attachment import active_attachment, adapters_of

TIED_EMBEDDING = (
    "LoRA on the embedding cannot be merged: {}. The head is the same weight in this base and would change too. Use the adapter "
    "without merging it (paddle-llm generate --adapter)."
)


@paddle.no_grad()
def merge(model: Any) -> None:
    """Merge the active adapter into the weights.

    The outputs stay the same, within rounding, at the cost of the base alone.

    Collective over tensor-parallel ranks with DoRA, otherwise local.

    Raises:
        UserError: If no mergeable adapter is active, the weights are sharded (stage 3), or the adapter has LoRA on an
            embedding that is tied to the head.
    """
    attachment = active_attachment(model)
    adapters = adapters_of(model)
    if adapters is None or attachment is None or not attachment.method.mergeable:
        active = attachment.method.name if attachment is not None else "none"
        raise UserError(f"The active adapter cannot be merged: {active}. Only LoRA and AdaLoRA can be merged.")
    if adapters.merged:
        return
    if not all(layer.weight._is_initialized() for layer, _ in attachment.merges.values()):
        raise UserError(
            "The weights are sharded (stage 3) and cannot be merged. Save the adapter and load it in one process."
        )
    tied = EMBEDDINGS[attachment.family.name].removesuffix(".weight")
    if tied in attachment.merges and is_tied(attachment.family.name, model.config):
        raise UserError(TIED_EMBEDDING.format(tied))
    for path, (layer, merged) in attachment.merges.items():
        weight = layer.weight
        adapters.merged[path] = weight.detach().cpu().clone()
        weight.set_value(merged(weight.astype("float32")).astype(weight.dtype))
        layer._is_merged = True


@paddle.no_grad()
def unmerge(model: Any) -> None:
    """Reverse `merge`: restore the weights bit for bit. Without a merge, do nothing."""
    adapters, attachment = adapters_of(model), active_attachment(model)
    if adapters is None or attachment is None or not adapters.merged:
        return
    for path, before in adapters.merged.items():
        layer, _ = attachment.merges[path]
        layer.weight.set_value(before)
        layer._is_merged = False
    adapters.merged.clear()
