"""Record a training on one rank.

The recorder does not change the training. A gradient is copied when the optimizer has computed its norm: it is reduced
and averaged, and neither clipped nor applied. Gradients and moments are copied on the rank that owns the parameter,
weights on every rank.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import paddle
from paddlenlp.trainer import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paddle_llm.models.weights.full_weights import family_name
from paddle_llm.parallel.mesh import current_mesh
from paddle_llm.parallel.zero.buckets import gradient_of
from paddle_llm.parallel.zero.owners import owns
from paddle_llm.peft.attach import all_tensors
from paddle_llm.rehearse.record import Part, RankRecord, Step
from paddle_llm.training.metrics.grad_norm import unwrapped
from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer


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
        # Listed once, before sharding stage 3 frees weights. Frozen weights are compared, too.
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

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
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

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """Copy the scalars of a log entry."""
        if "step" not in logs:  # PaddleNLP's summary of the whole training
            return
        scalars = self._step(logs["step"]).scalars
        scalars.update({name: logs[name] for name in ("loss", "grad_norm", "eval_loss") if logs.get(name) is not None})

    # --- copies ------------------------------------------------------------------------------------------------

    def on_gradients(self, norm: paddle.Tensor) -> None:
        """Copy the gradients of a step: they are reduced, and neither clipped nor applied."""
        gradients = self._step(self._trainer.state.global_step + 1).tensors["gradient"]
        for name, parameter in self._parameters:
            gradient = gradient_of(parameter)
            if gradient is not None and self._owns(parameter):
                gradients[name] = self._part(name, gradient)

    def _step(self, number: int) -> Step:
        return self.record.steps.setdefault(number, Step())

    def _owns(self, parameter: paddle.Tensor) -> bool:
        return owns(self._trainer.optimizer, parameter)

    def _part(self, name: str, tensor: paddle.Tensor) -> Part:
        return Part(self._shards[name], tensor.astype("float32").numpy().reshape(self._shapes[name]).copy())
