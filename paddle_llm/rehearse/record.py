"""What one rank saw of a training: the scalars of every step, and its part of every tensor.

The recorder only watches: a gradient is copied at the moment at which the optimizer has its norm, reduced and averaged,
neither clipped nor applied. Copies are taken where the layout keeps the truth: gradients and moments on the rank that
owns the parameter, weights everywhere.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddlenlp.trainer import TrainerCallback

from paddle_llm.models.weights.full_weights import family_name
from paddle_llm.models.weights.shards import Shard
from paddle_llm.parallel.mesh import current_mesh
from paddle_llm.parallel.zero.owners import owns
from paddle_llm.peft.attach import all_tensors
from paddle_llm.training.metrics.grad_norm import innermost
from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

TENSORS = ("gradient", "weight", "moment1", "moment2")


@dataclass(frozen=True)
class Part:
    """A rank's part of a full tensor."""

    shard: Shard
    values: np.ndarray


@dataclass
class Step:
    """One optimizer step on one rank.

    Attributes:
        scalars: "loss" (of the global batch), "grad_norm" (before clipping), "eval_loss" (after the step).
        tensors: quantity -> canonical name -> part; gradients before clipping, the others after the step.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, dict[str, Part]] = field(default_factory=lambda: {name: {} for name in TENSORS})


@dataclass
class RankRecord:
    """All steps of one rank.

    Attributes:
        rank: in the job.
        place: (data, sharding, tensor, pipeline) ranks.
        model: what the comparison needs to know of the network: family, heads, head size.
    """

    rank: int
    place: tuple[int, int, int, int]
    model: dict[str, Any]
    steps: dict[int, Step] = field(default_factory=dict)


class Recorder(TrainerCallback):
    """Watches one trainer; add it with `attach` before `train()`."""

    def __init__(self, trainer: PretrainTrainer):
        mesh = current_mesh(trainer.layout)
        config = trainer.model.config
        self._trainer = trainer
        self._family = family_name(trainer.model)
        # Once, while every weight is whole: under sharding stage 3 they come and go. Frozen weights are compared, too.
        tensors = list(all_tensors(trainer.model))
        self._parameters = [(name, parameter) for name, parameter, _ in tensors]
        self._shards = {name: shard for name, _, shard in tensors}
        self._shapes = {name: list(parameter.shape) for name, parameter in self._parameters}
        place = (mesh.data.rank, mesh.sharding.rank, mesh.tensor.rank, mesh.pipeline.rank)
        heads = config.num_attention_heads
        model = {"family": self._family, "heads": heads, "head_size": config.hidden_size // heads}
        self.record = RankRecord(trainer.args.process_index, place, model)

    @classmethod
    def attach(cls, trainer: PretrainTrainer) -> Recorder:
        recorder = cls(trainer)
        trainer.add_callback(recorder)
        return recorder

    # --- what the trainer calls --------------------------------------------------------------------------------

    def on_step_end(self, args, state, control, **kwargs):
        tensors = self._step(state.global_step).tensors
        sharded = getattr(self._trainer, "sharded_weights", None)
        with sharded.whole() if sharded is not None else nullcontext():
            for name, parameter in self._parameters:
                tensors["weight"][name] = self._part(name, parameter)
        states = innermost(self._trainer.optimizer)._accumulators
        for quantity in ("moment1", "moment2"):
            held = states.get(quantity, {})
            for name, parameter in self._parameters:
                if self._owns(parameter) and parameter.name in held:
                    tensors[quantity][name] = self._part(name, held[parameter.name])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "step" not in logs:  # upstream's summary of the whole training
            return
        scalars = self._step(logs["step"]).scalars
        scalars.update({name: logs[name] for name in ("loss", "grad_norm", "eval_loss") if logs.get(name) is not None})

    # --- copies ------------------------------------------------------------------------------------------------

    def on_gradients(self, norm: paddle.Tensor) -> None:
        """Copy the gradients of a step, when they are reduced and neither clipped nor applied."""
        gradients = self._step(self._trainer.state.global_step + 1).tensors["gradient"]
        for name, parameter in self._parameters:
            gradient = _gradient_of(parameter)
            if gradient is not None and self._owns(parameter):
                gradients[name] = self._part(name, gradient)

    def _step(self, number: int) -> Step:
        return self.record.steps.setdefault(number, Step())

    def _owns(self, parameter) -> bool:
        return owns(self._trainer.optimizer, parameter)

    def _part(self, name: str, tensor) -> Part:
        return Part(self._shards[name], tensor.astype("float32").numpy().reshape(self._shapes[name]).copy())


def _gradient_of(parameter):
    main_grad = getattr(parameter, "main_grad", None)
    gradient = main_grad if main_grad is not None else parameter._grad_ivar()
    return gradient if gradient is not None and gradient._is_initialized() else None
