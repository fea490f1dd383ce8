"""The random states that dropout draws from: which ranks share one, and which never do.

Ranks of one tensor-parallel group hold the same hidden states and must drop the same values of them, and other values
of what is split between them (heads of attention, parts of the sequence). Ranks that read other samples, and pipeline
stages, must never share a state. PaddleNLP 3.0.0b4 asks fleet for a rank's place, which plain data parallelism does not
tell it: there all ranks drop the same values, each of its own samples. It also leaves a named state out, without a word,
when its seed happens to be one that fleet has drawn at random.

A checkpoint keeps the state of the rank's own device. PaddleNLP's file has one state per visible device, by number: a
checkpoint of 8 visible GPUs cannot be resumed where 1 is visible, and on another card the state of an idle card is
restored without a message (trainer.py `_load_rng_state`, 3.0.0b4).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import paddle
from paddle.distributed.fleet.meta_parallel import get_rng_state_tracker

from paddle_llm.config.layout import Layout
from paddle_llm.core.console import say
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


def random_states() -> dict[str, Any]:
    """This rank's random states, independent of the number of its card and of the other cards that are visible."""
    device = paddle.Generator()
    tracker = get_rng_state_tracker()
    named = {}
    for name in tracker.states_:
        with tracker.rng_state(name):
            named[name] = device.get_state()
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": paddle.base.core.default_cpu_generator().get_state(),
        "device_kind": _device_kind(),
        "device": device.get_state(),
        "named": named,
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Continue from what `random_states` returned.

    Raises:
        RuntimeError: If this rank's named states are not those of `states`; the layout of both must be the same.
    """
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    paddle.base.core.default_cpu_generator().set_state(states["cpu"])
    if states["device_kind"] != _device_kind():  # generators of a CPU and of a GPU draw different numbers
        say(
            f"the checkpoint was saved on a {states['device_kind']}: on a {_device_kind()} dropout draws other values "
            "than the training would have drawn there"
        )
        return
    tracker = get_rng_state_tracker()
    if set(states["named"]) != set(tracker.states_):
        raise RuntimeError(f"named random states {sorted(states['named'])}, this rank has {sorted(tracker.states_)}")
    device = paddle.Generator()
    device.set_state(states["device"])
    for name, state in states["named"].items():
        with tracker.rng_state(name):
            device.set_state(state)


def _device_kind() -> str:
    """The kind of this rank's device, "cpu" or "gpu"."""
    return paddle.device.get_device().partition(":")[0]


def _mixed(*numbers: int) -> int:
    """A seed that depends on all numbers, 32 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
