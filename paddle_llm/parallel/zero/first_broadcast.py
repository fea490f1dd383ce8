"""Make the weights of all ranks equal before training, without a second copy of the network.

Fleet's wrappers and DataParallel (paddle 3.3.1) broadcast all weights of a group at once, from copies in fused buffers of
128 MB: for as long as that takes, every rank holds its weights twice. With sharding stage 3 that decides whether the
network fits, since it is whole on each rank only then. Upstream can broadcast weight by weight, in their own memory, but
no wrapper asks for it.
"""

from __future__ import annotations

from typing import Any

from paddle.distributed import parallel
from paddle.distributed.fleet.utils import hybrid_parallel_util

_UPSTREAM = parallel.sync_params_buffers


def broadcast_weight_by_weight() -> None:
    """Replace `sync_params_buffers` in the modules that call it."""
    parallel.sync_params_buffers = _weight_by_weight
    hybrid_parallel_util.sync_params_buffers = _weight_by_weight


def _weight_by_weight(*args: Any, **kwargs: Any) -> None:
    _UPSTREAM(*args, **{**kwargs, "fuse_params": False})
