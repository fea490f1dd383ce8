"""The random state of dropout, which tensor-parallel ranks share or of which each has one."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any


def named_random_state(name: str) -> Any:
    """Return a context whose random numbers come from a named state.

    PaddleNLP's own function has no effect on a CPU. This one has no effect only if the named states do not exist; the
    trainer creates them.

    Args:
        name: "global_seed", which is equal on all tensor-parallel ranks, or "local_seed", which is not.
    """
    from paddle.distributed.fleet.meta_parallel import get_rng_state_tracker

    tracker = get_rng_state_tracker()
    return tracker.rng_state(name) if name in tracker.states_ else nullcontext()
