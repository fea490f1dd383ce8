"""Record a training on one rank: the scalars of every step, and the rank's part of every tensor.

The recorder does not change the training. A gradient is copied when the optimizer has computed its norm: it is reduced
and averaged, and neither clipped nor applied. Gradients and moments are copied on the rank that owns the parameter,
weights on every rank.
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
from paddle_llm.parallel.zero.buckets import gradient_of
from paddle_llm.parallel.zero.owners import owns
from paddle_llm.peft.attach import all_tensors
from paddle_llm.training.metrics.grad_norm import unwrapped
from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

TENSORS = ("gradient", "weight", "moment1", "moment2")


@dataclass(frozen=True)
class Part:
    """A rank's part of a full tensor.

    Attributes:
        shard: Position of the part in the full tensor.
        values: Values in float32.
    """

    shard: Shard
    values: np.ndarray


@dataclass
class Step:
    """One optimizer step on one rank.

    Attributes:
        scalars: "loss" (of the global batch), "grad_norm" (before clipping), "eval_loss" (after the step).
        tensors: Parts by quantity and canonical name; gradients before clipping, all others after the step.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, dict[str, Part]] = field(default_factory=lambda: {name: {} for name in TENSORS})


@dataclass
class RankRecord:
    """All steps of one rank.

    Attributes:
        rank: Rank in the job.
        position: Its (data, sharding, tensor, pipeline) ranks.
        model: Facts of the network for the comparison: family, heads, head size.
        steps: Steps by number, 1 for the first.
    """

    rank: int
    position: tuple[int, int, int, int]
    model: dict[str, Any]
    steps: dict[int, Step] = field(default_factory=dict)


class Recorder(TrainerCallback):
    """Records one trainer; add it with `attach` before `train()`.

    Attributes:
        record: The record.
    """

    def __init__(self, trainer: PretrainTrainer):
        mesh = current_mesh(trainer.layout)
        config = trainer.model.config
        self._trainer = trainer
        self._family = family_name(trainer.model)
        # Listed once, while every weight is whole: in sharding stage 3 weights are freed. Frozen weights are compared,
        # too.
        tensors = list(all_tensors(trainer.model))
        self._parameters = [(name, parameter) for name, parameter, _ in tensors]
        self._shards = {name: shard for name, _, shard in tensors}
        self._shapes = {name: list(parameter.shape) for name, parameter in self._parameters}
        position = (mesh.data.rank, mesh.sharding.rank, mesh.tensor.rank, mesh.pipeline.rank)
        heads = config.num_attention_heads
        model = {"family": self._family, "heads": heads, "head_size": config.hidden_size // heads}
        self.record = RankRecord(trainer.args.process_index, position, model)

    @classmethod
    def attach(cls, trainer: PretrainTrainer) -> Recorder:
        """Add a recorder to a trainer."""
        recorder = cls(trainer)
        trainer.add_callback(recorder)
        return recorder

    # --- callbacks --------------------------------------------------------------------------------

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Copy weights and moments after the update."""
        tensors = self._step(state.global_step).tensors
        sharded = getattr(self._trainer, "sharded_weights", None)
        with sharded.whole() if sharded is not None else nullcontext():
            for name, parameter in self._parameters:
                tensors["weight"][name] = self._part(name, parameter)
        states = unwrapped(self._trainer.optimizer)._accumulators
        for quantity in ("moment1", "moment2"):
            held = states.get(quantity, {})
            for name, parameter in self._parameters:
                if self._owns(parameter) and parameter.name in held:
                    tensors[quantity][name] = self._part(name, held[parameter.name])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Copy the scalars of a row."""
        if "step" not in logs:  # PaddleNLP's summary of the whole training
            return
        scalars = self._step(logs["step"]).scalars
        scalars.update({name: logs[name] for name in ("loss", "grad_norm", "eval_loss") if logs.get(name) is not None})

    # --- copies ------------------------------------------------------------------------------------------------

    def on_gradients(self, norm: paddle.Tensor) -> None:
        """Copy the gradients of a step, when they are reduced and neither clipped nor applied."""
        gradients = self._step(self._trainer.state.global_step + 1).tensors["gradient"]
        for name, parameter in self._parameters:
            gradient = gradient_of(parameter)
            if gradient is not None and self._owns(parameter):
                gradients[name] = self._part(name, gradient)

    def _step(self, number: int) -> Step:
        return self.record.steps.setdefault(number, Step())

    def _owns(self, parameter: Any) -> bool:
        return owns(self._trainer.optimizer, parameter)

    def _part(self, name: str, tensor: Any) -> Part:
        return Part(self._shards[name], tensor.astype("float32").numpy().reshape(self._shapes[name]).copy())
