"""FinetuneTrainer: PretrainTrainer for samples of unequal length, partly frozen networks and generated answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import paddle
from paddlenlp.trainer import EarlyStoppingCallback, TrainingArguments

from paddle_llm.checkpoint.identity import RunIdentity
from paddle_llm.data.counted_batches import (
    LABELLED_POSITIONS,
    POSITION_LABELS,
    CountedBatches,
    count_instruction_tokens,
)
from paddle_llm.data.instructions.conversation import Conversation
from paddle_llm.models.head import logits_at_positions
from paddle_llm.models.weights.full_weights import family_name
from paddle_llm.parallel.process.first_rank import on_first_rank
from paddle_llm.peft.attachment import active_attachment
from paddle_llm.peft.methods import adalora
from paddle_llm.peft.targets import on_any_rank
from paddle_llm.training.step.loss_normalization import find_criterion
from paddle_llm.training.trainers.identity import digest_of_frozen, old_digest_of_frozen
from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel

# On a GPU the head computes logits for a multiple of this many positions: tensors of many sizes would fragment its
# memory.
_POSITION_MULTIPLE = 256
Scorer = Callable[[PretrainTrainer, Sequence[Conversation], str], dict[str, float]]


@dataclass(frozen=True)
class Answers:
    """Answers that are generated and scored in an evaluation.

    Attributes:
        scorer: Function of the trainer, the conversations and the prefix of the metric names that returns
            {"<prefix>_bleu": ..., ...}; collective over all ranks.
        conversations: Conversations by the prefix of an evaluation ("eval", "test").
    """

    scorer: Scorer
    conversations: dict[str, Sequence[Conversation]] = field(default_factory=dict)


class FinetuneTrainer(PretrainTrainer):
    """Trains a network to which `peft.attach` may have attached a method; used like PaddleNLP's Trainer.

    Samples are those of `InstructionDataset` or `PackedDataset`, batches those of `PadAndStack`. A checkpoint contains
    the trained weights only: a training is resumed with the base model that it started from.

    Args:
        model: Network or PipelineLayer.
        args: Arguments from `training_arguments`.
        answers: Answers to generate and score in each evaluation; None to compute the loss only.
        patience: Evaluations without improvement after which the training ends; None for no limit.
        **kwargs: Arguments of `PretrainTrainer`.
    """

    def __init__(
        self,
        model: LanguageModel | None = None,
        args: TrainingArguments | None = None,
        *,
        answers: Answers | None = None,
        patience: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(model=model, args=args, **kwargs)
        self._answers = answers
        # Over all ranks: a pipeline stage sees its own layers only, and all stages must save and resume alike.
        self.saves_trained_only = on_any_rank(_is_partly_frozen(self.model))
        self._base = digest_of_frozen(self.model, self.layout) if self.saves_trained_only else None
        adalora.add_budget_callback(self)
        if patience is not None:
            self.add_callback(Patience(patience))
            self.completes_evaluations = True  # its result decides whether there is a next step

    def counted_batches(self, collate: Callable[[list[Any]], dict[str, Any]]) -> CountedBatches:
        """Return a collator whose batches carry their numbers of labels and tokens, and the labelled positions."""
        layout = self.layout
        selects_positions = (
            layout.pipeline == 1 and not layout.sequence_parallel and find_criterion(self.model) is not None
        )
        multiple = _POSITION_MULTIPLE if paddle.device.get_device().startswith("gpu") else 1
        return CountedBatches(collate, count_instruction_tokens, multiple if selects_positions else None)

    def compute_loss(self, model: paddle.nn.Layer, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        """Compute the loss of a batch; the head computes logits at labelled positions only.

        Args:
            model: Network as the loop calls it, inside fleet's wrapper.
            inputs: Batch of `CountedBatches`.
            return_outputs: Whether to return the outputs as well; default False.

        Returns:
            The loss, a scalar; with `return_outputs` a pair of loss and outputs.
        """
        if LABELLED_POSITIONS not in inputs:
            return super().compute_loss(model, inputs, return_outputs)
        inputs = dict(inputs)
        positions = inputs.pop(LABELLED_POSITIONS)
        shape, inputs["labels"] = inputs["labels"].shape, inputs.pop(POSITION_LABELS)
        with logits_at_positions(self.model, family_name(self.model), positions, shape):
            return super().compute_loss(model, inputs, return_outputs)

    def additional_metrics(self, metric_key_prefix: str) -> dict[str, float]:
        """Return the scores of the generated answers. Collective over all ranks.

        Args:
            metric_key_prefix: Prefix of their names, "eval" or "test".
        """
        if self._answers is None or not self._answers.conversations.get(metric_key_prefix):
            return {}
        return self._answers.scorer(self, self._answers.conversations[metric_key_prefix], metric_key_prefix)

    # --- checkpoints of the trained weights ----------------------------------------------------------------------

    def _set_state_dict_in_model(self, state_dict: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            if self.saves_trained_only:
                warnings.filterwarnings("ignore", message="Skip loading for")
            super()._set_state_dict_in_model(state_dict)

    def _identity(self, old: bool = False, old_data: dict[str, Any] | None = None) -> RunIdentity:
        attachment = active_attachment(self.model)
        method = None
        if attachment is not None:  # tuples become lists, as in JSON
            method = {k: list(v) if isinstance(v, tuple) else v for k, v in attachment.method.as_dict().items()}
        base = self._base
        if old and self.saves_trained_only:
            base = on_first_rank(lambda: old_digest_of_frozen(self.model))
        return replace(super()._identity(old, old_data), further={"method": method, "base": base})


class Patience(EarlyStoppingCallback):
    """PaddleNLP's early stopping with a counter that is part of a checkpoint."""

    state_name = "patience"

    def state(self) -> dict[str, Any]:
        """Return the number of evaluations without improvement."""
        return {"evaluations": self.early_stopping_patience_counter}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.early_stopping_patience_counter = int(state["evaluations"])


def _is_partly_frozen(model: LanguageModel) -> bool:
    return any(parameter.stop_gradient for parameter in model.parameters())
