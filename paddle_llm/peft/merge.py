"""Merges an adapter into the weights, and removes it again bit for bit.

Adding and subtracting would leave rounding errors in the weights (in bfloat16 everything smaller than a 256th of
them), so the old values are kept in host memory: as many bytes as the merged matrices have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import paddle

from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.names import EMBEDDINGS, is_tied
from paddle_llm.peft.attachment import active_attachment, adapters_of

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel

TIED_EMBEDDING = (
    "LoRA on the embedding cannot be merged: {}. The head is the same weight in this base and would change too. Use the adapter "
    "without merging it (paddle-llm generate --adapter)."
)


@paddle.no_grad()
def merge(model: LanguageModel) -> None:
    """Merge the active adapter into the weights.

    The outputs stay the same within rounding, and the network is as fast as its base. With DoRA the call is collective
    over tensor-parallel ranks, otherwise local.

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
            "The adapter cannot be merged into weights that are sharded (stage 3). Save it, load it in one process and "
            "merge it there."
        )
    tied = EMBEDDINGS[attachment.family.name].removesuffix(".weight")
    if tied in attachment.merges and is_tied(attachment.family.name, model.config):
        raise UserError(TIED_EMBEDDING.format(tied))
    for path, (layer, merged_weight) in attachment.merges.items():
        weight = layer.weight
        adapters.merged[path] = weight.detach().cpu().clone()
        weight.set_value(merged_weight(weight.astype("float32")).astype(weight.dtype))
        layer._is_merged = True


@paddle.no_grad()
def unmerge(model: LanguageModel) -> None:
    """Reverse `merge`: restore the weights bit for bit. Without a merge, do nothing."""
    adapters, attachment = adapters_of(model), active_attachment(model)
    if adapters is None or attachment is None or not adapters.merged:
        return
    for path, weight in adapters.merged.items():
        layer, _ = attachment.merges[path]
        layer.weight.set_value(weight)
        layer._is_merged = False
    adapters.merged.clear()
