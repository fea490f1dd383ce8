"""The parts of a sharded tensor, brought together on the first rank of the axis that splits it.

What the parts mean (along which axis, in which sections) the models' room knows: `models/weights/full_weights.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paddle_llm.parallel.mesh import Axis


def gathered(tensor: Any, axis: Axis) -> list[np.ndarray] | None:
    """The axis' ranks' tensors (all of one shape) by rank, on its rank 0; None on the others.

    Collective over the axis. bfloat16 comes as its bits in uint16, as from `Tensor.numpy()`.
    """
    import paddle

    buffers = [paddle.empty_like(tensor) for _ in range(axis.size)] if axis.rank == 0 else None
    with paddle.no_grad():
        paddle.distributed.gather(tensor.detach().contiguous(), buffers, dst=axis.ranks[0], group=axis.group)
    return None if buffers is None else [buffer.numpy() for buffer in buffers]
