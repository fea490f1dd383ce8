"""The random states of dropout: which ranks share a state and which do not.

Ranks of one tensor-parallel group hold the same hidden states and must drop the same values of them, but different
values of tensors that are split between them (attention heads, shards of the sequence). Ranks that read different
samples, and pipeline stages, must not share a state. PaddleNLP 3.0.0b4 gets a rank's position from fleet, which does
not have it with plain data parallelism: there all ranks drop the same values of different samples. It also omits a
named state without a message if its seed equals one that fleet has drawn at random.

A checkpoint contains the state of the rank's own device. PaddleNLP's file has one state per visible device, by number:
a checkpoint of 8 visible GPUs cannot be resumed with 1 visible GPU, and on another GPU the state of an idle one is
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

# Names of Paddle and PaddleNLP: states for values that are replicated over tensor-parallel ranks, for values that are
# split, and for initial weights.
_REPLICATED, _SPLIT, _WEIGHTS = "global_seed", "local_seed", "model_parallel_rng"


def seed_random_states(layout: Layout, seed: int, named: bool, step: int = 0) -> None:
    """Set this rank's random states, replacing those that PaddleNLP's trainer has set.

    Args:
        layout: Layout of the job.
        seed: Seed of the training.
        named: Whether the trainer's checkpoints contain named states (PaddleNLP: in hybrid layouts); otherwise every
            value is drawn from the default state.
        step: Optimizer step at which the training continues on another layout; then Python's and numpy's states are set,
            too.
    """
    mesh = current_mesh(layout)
    position = [mesh.data_rank, mesh.pipeline.rank]
    if step:
        seed = _mixed(seed, 4, step)
        random.seed(_mixed(seed, 5, *position))
        np.random.seed(_mixed(seed, 6, *position))
    tracker = get_rng_state_tracker()
    had_weights = _WEIGHTS in tracker.states_
    tracker.reset()
    paddle.seed(_mixed(seed, 0, *position))
    if named:
        tracker.add(_REPLICATED, _mixed(seed, 1, *position))
        tracker.add(_SPLIT, _mixed(seed, 2, *position, mesh.tensor.rank))
    if had_weights:
        tracker.add(_WEIGHTS, _mixed(seed, 3, *position, mesh.tensor.rank))


def random_states() -> dict[str, Any]:
    """Return this rank's random states, independent of the number of its device and of other visible devices."""
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


def describe_states(states: dict[str, Any]) -> dict[str, Any]:
    """Return what `random_states` returned with numbers and text in place of Paddle's objects, for a checkpoint."""
    named = {name: _describe(state) for name, state in states["named"].items()}
    return {**states, "cpu": _describe(states["cpu"]), "device": _describe(states["device"]), "named": named}


def states_of_description(described: dict[str, Any]) -> dict[str, Any]:
    """Reverse `describe_states`."""
    named = {name: _state_of(state) for name, state in described["named"].items()}
    return {**described, "cpu": _state_of(described["cpu"]), "device": _state_of(described["device"]), "named": named}


def has_dropout(model: paddle.nn.Layer) -> bool:
    """Return whether a network drops values at random in training."""
    config = getattr(model, "config", None)
    keys = vars(config) if config is not None else {}
    if any("dropout" in key and isinstance(value, float) and value > 0 for key, value in keys.items()):
        return True
    return any(isinstance(layer, paddle.nn.Dropout) and layer.p > 0 for layer in model.sublayers())


def restore_random_states(states: dict[str, Any]) -> None:
    """Set this rank's random states to those that `random_states` returned.

    Args:
        states: Random states of this rank.

    Raises:
        RuntimeError: If this rank's named states are not those of `states`; the layout of both must be the same.
    """
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    paddle.base.core.default_cpu_generator().set_state(states["cpu"])
    if states["device_kind"] != _device_kind():  # generators of a CPU and of a GPU draw different numbers
        say(
            f"the checkpoint was saved on a {states['device_kind']} and is resumed on a {_device_kind()}: dropout draws other "
            "values than an uninterrupted training would"
        )
        return
    tracker = get_rng_state_tracker()
    if set(states["named"]) != set(tracker.states_):
        raise RuntimeError(
            f"the checkpoint has random states {sorted(states['named'])}, but this rank has {sorted(tracker.states_)}"
        )
    device = paddle.Generator()
    device.set_state(states["device"])
    for name, state in states["named"].items():
        with tracker.rng_state(name):
            device.set_state(state)


def _describe(state: Any) -> dict[str, Any]:
    """Return the content of Paddle's GeneratorState; `engine` is the text of C++'s std::mt19937_64."""
    device, seed, offset, engine = state.__getstate__()
    return {"device": device, "seed": seed, "offset": offset, "engine": bytes(engine).decode("latin-1")}


def _state_of(described: dict[str, Any]) -> Any:
    kind = paddle.base.core.GeneratorState
    state = kind.__new__(kind)
    engine = list(described["engine"].encode("latin-1"))
    state.__setstate__((described["device"], described["seed"], described["offset"], engine))
    return state


def _device_kind() -> str:
    """Return the kind of this rank's device, "cpu" or "gpu"."""
    return paddle.device.get_device().partition(":")[0]


def _mixed(*numbers: int) -> int:
    """Return a seed of 32 bits that depends on all numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
