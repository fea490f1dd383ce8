"""Parts of the corrected `forward` methods: packed rows in a batch's inputs, and the loss that all families share.

`packed_rows.py` describes the inputs `segment_lengths` and `sample_ends`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import paddle

from paddle_llm.models.patches.shared.packed_rows import sample_ends, sample_positions

WHY_PACKED_ROWS = "It does not support packed rows."


def with_packed_rows(forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a network's `forward` that also accepts `segment_lengths`.

    Args:
        forward: Method of a network in one process.
        name: Name of its argument that receives `sample_ends`.
    """

    @wraps(forward)
    def replacement(self: Any, *args: Any, segment_lengths: Any = None, **inputs: Any) -> Any:
        if segment_lengths is not None:
            length = (args[0] if args else inputs["input_ids"]).shape[1]
            inputs.update(_attention_inputs(segment_lengths, length, inputs.get("position_ids"), name))
        return forward(self, *args, **inputs)

    return replacement


def with_packed_rows_in_pipeline(prepare: Callable[..., Any], name: str) -> Any:
    """Return a pipeline's `_prepare_pipeline_inputs_func` that also accepts `segment_lengths`.

    Args:
        prepare: The class method of a pipeline.
        name: Name of the input that receives `sample_ends`.
    """

    def replacement(cls: Any, inputs: Any) -> Any:
        convert_segment_lengths(inputs, name)
        return prepare.__func__(cls, inputs)  # type: ignore[attr-defined]

    return classmethod(replacement)


def convert_segment_lengths(inputs: Any, name: str) -> None:
    """Replace `segment_lengths` with `sample_ends` in a pipeline's micro-batches, one dictionary or several.

    Args:
        inputs: Micro-batches; changed in place.
        name: Name of the input that receives `sample_ends`.
    """
    for batch in [inputs] if isinstance(inputs, dict) else inputs:
        lengths = batch.pop("segment_lengths", None)
        if lengths is not None:
            batch.update(_attention_inputs(lengths, batch["input_ids"].shape[1], batch.get("position_ids"), name))


def stage_inputs(inputs: Any) -> list[Any]:
    """Return the inputs of the first and of the last stage, as lists if there are several micro-batches.

    Args:
        inputs: One micro-batch or several, as dictionaries.

    Returns:
        [(input_ids, mask, position_ids), labels]; absent inputs are None.
    """
    convert_segment_lengths(inputs, "attention_mask")
    if not isinstance(inputs, dict):
        inputs = {name: [batch[name] for batch in inputs] for name in inputs[0]}
    first = [inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids")]
    return [first[0] if first[1:] == [None, None] else tuple(first), inputs["labels"]]


def _attention_inputs(lengths: paddle.Tensor, length: int, position_ids: Any, name: str) -> dict[str, paddle.Tensor]:
    if position_ids is None:
        position_ids = sample_positions(lengths, length)
    return {name: sample_ends(lengths, length), "position_ids": position_ids}


def with_loss(model: Any, outputs: Any, labels: Any) -> Any:
    """Return the outputs with the loss before the logits, or as an attribute; unchanged without labels."""
    if labels is None:
        return outputs
    if isinstance(outputs, tuple):
        return (model.criterion(outputs[0], labels), *outputs)
    outputs.loss = model.criterion(outputs.logits, labels)
    return outputs
