"""Which random state dropout draws from: one that tensor-parallel ranks share, or each its own."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any


def named_random_state(name: str) -> Any:
    """What is drawn inside comes from the state of this name: "global_seed" is the same on all tensor-parallel ranks,
    "local_seed" is not. PaddleNLP's own does nothing on a CPU. Where the trainer set no named states, nor does this."""
    from paddle.distributed.fleet.meta_parallel import get_rng_state_tracker

    tracker = get_rng_state_tracker()
    return tracker.rng_state(name) if name in tracker.states_ else nullcontext()
