"""The random state of dropout: shared by tensor-parallel ranks, or one per rank."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any


def named_random_state(name: str) -> Any:
    """Return a context whose random numbers come from a named state.

    PaddleNLP's function does nothing on a CPU. Without named states, which the trainer sets, this does nothing either.

    Args:
        name: "global_seed", which is equal on all tensor-parallel ranks, or "local_seed", which is not.
    """
    from paddle.distributed.fleet.meta_parallel import get_rng_state_tracker

    tracker = get_rng_state_tracker()
    return tracker.rng_state(name) if name in tracker.states_ else nullcontext()
