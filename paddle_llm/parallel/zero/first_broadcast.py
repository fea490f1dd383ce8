"""Make the weights of all ranks equal before training, without a second copy of the network.

Fleet's wrappers and DataParallel (paddle 3.3.1) broadcast all weights of a group at once, from copies in fused buffers
of 128 MB, so every rank holds its weights twice meanwhile. In sharding stage 3 this is the only time at which the
network is whole on each rank, and it decides whether the network fits. Paddle can broadcast each weight in its own
memory, but no wrapper uses that.
"""

from __future__ import annotations

from typing import Any

from paddle.distributed import parallel
from paddle.distributed.fleet.utils import hybrid_parallel_util

from paddle_llm.core.upstream import replace

_upstream = parallel.sync_params_buffers


def broadcast_weight_by_weight() -> None:
    """Replace `sync_params_buffers` in the modules that call it. May be called twice."""
    for module in (parallel, hybrid_parallel_util):
        if module.sync_params_buffers is not _weight_by_weight:
            why = "It broadcasts copies of all weights in fused buffers, so every rank holds its weights twice."
            replace(module, "sync_params_buffers", _weight_by_weight, why)


def _weight_by_weight(*args: Any, **kwargs: Any) -> None:
    _upstream(*args, **{**kwargs, "fuse_params": False})
