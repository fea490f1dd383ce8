"""Gather the parts of a sharded tensor on the first rank of the axis that splits it.

`models/weights/shards.py` describes the parts: the dimension that is split, and its sections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.parallel.mesh import Axis

if TYPE_CHECKING:
    import paddle


def gathered(tensor: paddle.Tensor, axis: Axis) -> list[np.ndarray] | None:
    """Return the tensors of all ranks of an axis, by rank, on its rank 0; None on the others. Collective over the axis.

    Args:
        tensor: This rank's tensor; all ranks have the same shape. bfloat16 is returned as its bits in uint16.
        axis: Axis with more than one rank.
    """
    import paddle

    buffers = [paddle.empty_like(tensor) for _ in range(axis.size)] if axis.rank == 0 else None
    with paddle.no_grad():
        paddle.distributed.gather(tensor.detach().contiguous(), buffers, dst=axis.ranks[0], group=axis.group)
    return None if buffers is None else [buffer.numpy() for buffer in buffers]
