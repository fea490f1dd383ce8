"""The random states that dropout draws from: which ranks share one, and which never do.

Ranks of one tensor-parallel group hold the same hidden states and must drop the same values of them, and other values
of what is split between them (heads of attention, parts of the sequence). Ranks that read other samples, and pipeline
stages, must never share a state. PaddleNLP 3.0.0b4 asks fleet for a rank's place, which plain data parallelism does not
tell it: there all ranks drop the same values, each of its own samples. It also leaves a named state out, without a word,
when its seed happens to be one that fleet has drawn at random.
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle.distributed.fleet.meta_parallel import get_rng_state_tracker

from paddle_llm.config.layout import Layout
from paddle_llm.parallel.mesh import current_mesh

# Paddle's and PaddleNLP's names. What is replicated over tensor-parallel ranks, what is split, weights when they are made.
_REPLICATED, _SPLIT, _WEIGHTS = "global_seed", "local_seed", "model_parallel_rng"


def seed_random_states(layout: Layout, seed: int, named: bool) -> None:
    """Set this rank's random states, in place of what PaddleNLP's trainer has set.

    Args:
        named: whether the trainer's checkpoints keep named states (PaddleNLP: in hybrid layouts); else there are none,
            and all is drawn from the default state.
    """
    mesh = current_mesh(layout)
    reader = [mesh.data_rank, mesh.pipeline.rank]
    tracker = get_rng_state_tracker()
    had_weights = _WEIGHTS in tracker.states_
    tracker.reset()
    paddle.seed(_mixed(seed, 0, *reader))
    if named:
        tracker.add(_REPLICATED, _mixed(seed, 1, *reader))
        tracker.add(_SPLIT, _mixed(seed, 2, *reader, mesh.tensor.rank))
    if had_weights:
        tracker.add(_WEIGHTS, _mixed(seed, 3, *reader, mesh.tensor.rank))


def _mixed(*numbers: int) -> int:
    """A seed that depends on all numbers, 32 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
