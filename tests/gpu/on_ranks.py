"""Functions that ranks of the tests in this folder run, on a CPU or a GPU.

Neither this module nor one that it imports may import Paddle: a rank reads FLAGS_* and the number of its card from the
environment when Paddle is imported, and `run_ranks` sets that environment after it has imported the rank's function.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.rehearse.case import Case


@dataclass
class Trained:
    """One rank after a training.

    Attributes:
        device: Paddle's name of the device, such as "gpu:0".
        losses: Loss of the global batch, by step; NaN where the step's row has none.
        norms: Gradient norm before clipping, by step; NaN where the step's row has none.
        skipped: Steps without an update.
        scale: Scale of the loss at the end; None without a loss scaler.
        dtypes: Types of the weights.
        kernels: Names of the fused functions of Paddle that were called.
        weights: Weights in float32 by name; empty under sharding stage 3.
    """

    device: str
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: int = 0
    scale: float | None = None
    dtypes: set[str] = field(default_factory=set)
    kernels: set[str] = field(default_factory=set)
    weights: dict[str, np.ndarray] = field(default_factory=dict)


def train(case: Case, output: Path | None, resume: Path | None, settings: dict[str, Any]) -> Trained:
    """Train a case through the product's own trainer.

    Args:
        case: The case.
        output: Folder of checkpoints; None for a temporary one.
        resume: Checkpoint to continue from.
        settings: Fields of RunConfig that replace the oracle's.
    """
    import paddle

    with _trainer(case, output, settings) as trainer:
        trained = Trained(paddle.device.get_device())
        _record(trainer, trained)
        with _called_kernels(trained.kernels):
            trainer.train(resume_from_checkpoint=resume)
        trained.skipped = trainer.meter.skipped_steps
        scaler = getattr(trainer, "scaler", None)
        if trainer.do_grad_scaling and scaler is not None:
            trained.scale = float(scaler._scale)
        trained.dtypes = {str(parameter.dtype).split(".")[-1] for parameter in trainer.model.parameters()}
        if trainer.sharded_weights is None:
            weights = trainer.model.state_dict()
            trained.weights = {name: value.astype("float32").numpy() for name, value in weights.items()}
    return trained


def state_places(case: Case) -> dict[str, set[str]]:
    """Return Paddle's places of the moments after a training, by moment."""
    with _trainer(case) as trainer:
        from paddle_llm.training.metrics.grad_norm import unwrapped

        trainer.train()
        states = unwrapped(trainer.optimizer)._accumulators
        return {name: {str(state.place) for state in states[name].values()} for name in ("moment1", "moment2")}


def lose_a_rank(case: Case) -> list[float]:
    """Train a case, and kill rank 1 after its first step."""
    with _trainer(case) as trainer:
        trained = Trained("")
        _record(trainer, trained, dies=trainer.args.process_index == 1)
        trainer.train()
    return trained.losses


@contextmanager
def _trainer(case: Case, output: Path | None = None, settings: dict[str, Any] | None = None) -> Iterator[Any]:
    from paddle_llm.parallel.process.start import start_process

    assert case.config.device is not None
    start_process(case.config.device, case.layout.world_size)
    from paddle_llm.rehearse.case_trainer import trainer_of

    with tempfile.TemporaryDirectory(prefix="gpu-test-") as folder:
        yield trainer_of(case, str(output or folder), **(settings or {}))


def _record(trainer: Any, trained: Trained, dies: bool = False) -> None:
    """Record losses and norms; with `dies`, kill this rank after its first step."""
    from paddlenlp.trainer import TrainerCallback

    def number(value: float | None) -> float:
        return math.nan if value is None else value

    class Recorder(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "learning_rate" in logs:
                trained.losses.append(number(logs["loss"]))
                trained.norms.append(number(logs["grad_norm"]))

        def on_step_end(self, args, state, control, **kwargs):
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)

    trainer.add_callback(Recorder())


@contextmanager
def _called_kernels(called: set[str]) -> Iterator[None]:
    """Record the names of Paddle's fused functions that are called in the block."""
    from functools import wraps
    from unittest import mock

    import paddle.nn.functional as F
    from paddlenlp.transformers.llama import fusion_ops
    from paddlenlp.transformers.qwen2 import modeling as qwen2

    def recorded(name: str, function: Any) -> Any:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return function(*args, **kwargs)

        return call

    functions = {
        "attention": [(F, "scaled_dot_product_attention")],
        "flashmask": [(F, "flashmask_attention")],
        "rope": [(module, "fused_rotary_position_embedding") for module in (fusion_ops, qwen2)],
    }
    patches = [
        mock.patch.object(module, attribute, recorded(name, getattr(module, attribute)))
        for name, attributes in functions.items()
        for module, attribute in attributes
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


# ---- single operations ----------------------------------------------------------------------------------------------


def packed_attention(device: str, dtype: str, states: list[np.ndarray], sample_ends_BS: np.ndarray) -> list[np.ndarray]:
    """Return attention of packed rows, and the gradients of its sum of squares by queries, keys and values, in float32.

    Args:
        states: Queries, keys and values [B, S, N, D] in float32.
    """
    import paddle

    paddle.set_device(device)
    from paddle_llm.models.patches.shared.packed_rows import attend

    tensors = [paddle.to_tensor(one).astype(dtype) for one in states]
    for tensor in tensors:
        tensor.stop_gradient = False
    output = attend(*tensors, paddle.to_tensor(sample_ends_BS))
    output.astype("float32").square().sum().backward()
    return [one.astype("float32").numpy() for one in (output, *(tensor.grad for tensor in tensors))]


def fused_norm(device: str, dtype: str, x_RH: np.ndarray, weight_H: np.ndarray) -> list[np.ndarray]:
    """Return `fused_ln`'s RMSNorm, and the gradients of its sum of squares by input and weight, in float32."""
    import paddle

    paddle.set_device(device)
    from paddle_llm.models.patches.shared.rms_norm import why_not_fused

    reason = why_not_fused()
    assert not reason, reason
    import fused_ln

    x, weight = (paddle.to_tensor(values).astype(dtype) for values in (x_RH, weight_H))
    x.stop_gradient = weight.stop_gradient = False
    output = fused_ln.fused_rms_norm(x, weight, 1e-6)[0]
    output.astype("float32").square().sum().backward()
    return [one.astype("float32").numpy() for one in (output, x.grad, weight.grad)]


def environment(names: list[str]) -> dict[str, str | None]:
    """Return variables of this rank's environment."""
    return {name: os.environ.get(name) for name in names}
