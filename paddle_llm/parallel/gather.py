"""A sharded model as full tensors by their single-process names, one at a time.

How a tensor is split over tensor parallel ranks, and what a stage's layers are called outside a pipeline, the model's
own class knows (`get_tensor_parallel_convert_actions`, `PipelinePretrainedModel.state_dict`); nothing is written here
for any one model. Memory: one full tensor at a time, on tensor rank 0 of each stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.parallel.mesh import Axis, current_mesh


def full_tensors(model: Any, layout: Layout) -> Iterator[tuple[str, np.ndarray | None]]:
    """Every tensor of this rank's stage, whole and under the name that it has in one process.

    All ranks of a stage iterate to the end, together. Tensors that several stages hold (tied embeddings) come from each.

    Args:
        model: a PretrainedModel or a PipelineLayer of PaddleNLP, bare or in fleet's wrappers.
        layout: of the running job.

    Yields:
        (name, array) on tensor rank 0, (name, None) on the other tensor ranks. bfloat16 comes as its bits in uint16,
        as from `Tensor.numpy()`.

    Raises:
        RuntimeError: when a split parameter has no rule in the model's class.
    """
    bare = unwrapped(model)
    tensors = bare.state_dict()
    axis = current_mesh(layout).tensor
    merges = _merge_rules(bare, list(tensors)) if axis.size > 1 else {}
    for name, tensor in tensors.items():
        if axis.size == 1 or not getattr(tensor, "is_distributed", False):
            yield name, tensor.numpy() if axis.rank == 0 else None
        elif name not in merges:
            raise RuntimeError(f"{type(bare).__name__} splits {name} over tensor parallel ranks but has no rule for it")
        else:
            parts = gathered(tensor, axis)
            yield name, None if parts is None else np.asarray(merges[name](parts))


def unwrapped(model: Any) -> Any:
    """The model without what fleet and paddle.DataParallel put around it."""
    while not hasattr(model, "get_tensor_parallel_convert_actions") and hasattr(model, "_layers"):
        model = model._layers
    return model


def gathered(tensor: Any, axis: Axis) -> list[np.ndarray] | None:
    """The axis' ranks' tensors (all of one shape) by rank, on its rank 0; None on the others."""
    import paddle

    buffers = [paddle.empty_like(tensor) for _ in range(axis.size)] if axis.rank == 0 else None
    with paddle.no_grad():
        paddle.distributed.gather(tensor.detach().contiguous(), buffers, dst=axis.ranks[0], group=axis.group)
    return None if buffers is None else [buffer.numpy() for buffer in buffers]


def _merge_rules(model: Any, names: list[str]) -> dict[str, Any]:
    """For each split tensor the function that makes the full one of its parts."""
    return model.get_tensor_parallel_convert_actions(model.config, names, is_split=False, ignore_error=True)
