"""A low-rank product added to the weights that it stands beside, and taken away again, bit for bit.

Adding and subtracting leaves rounding in the weights (of bfloat16: all that is smaller than a 256th of them), so what was
there before is kept, in host memory: the bytes of the matrices concerned.
"""

from __future__ import annotations

from typing import Any

import paddle

from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.names import EMBEDDINGS, is_tied
from paddle_llm.peft.attachment import active_attachment, adapters_of

TIED_EMBEDDING = (
    "LoRA on the embedding cannot be merged: {}. The head is the same weight in this base and would change, too. Use base and "
    "adapter side by side (paddle-llm generate --adapter)."
)


@paddle.no_grad()
def merge(model: Any) -> None:
    """Add the active adapter to the weights: the same outputs, within rounding, at the cost of the base.

    Collective over tensor-parallel ranks with DoRA, otherwise not.

    Raises:
        UserError: If nothing that can be added to weights is active, the weights are sharded (stage 3), or the adapter has LoRA
            on an embedding that is the head, too.
    """
    attachment = active_attachment(model)
    if attachment is None or not attachment.method.mergeable:
        what = attachment.method.name if attachment is not None else "nothing"
        raise UserError(f"only LoRA and AdaLoRA can be merged into weights; {what} is active")
    adapters = adapters_of(model)
    if adapters.merged:
        return
    if not all(layer.weight._is_initialized() for layer, _ in attachment.merges.values()):
        raise UserError(
            "the weights are sharded (stage 3) and cannot be merged here: save the adapter, load it in one process"
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
    """The inverse of `merge`: the weights are what they were, bit for bit. Without a merge: nothing."""
    adapters, attachment = adapters_of(model), active_attachment(model)
    if adapters is None or attachment is None or not adapters.merged:
        return
    for path, before in adapters.merged.items():
        layer, _ = attachment.merges[path]
        layer.weight.set_value(before)
        layer._is_merged = False
    adapters.merged.clear()
