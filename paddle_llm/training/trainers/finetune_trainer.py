"""FinetuneTrainer: PretrainTrainer for instructions. Rows of unequal lengths, a few tensors of many that are trained, and
answers that can be scored."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import paddle
from paddlenlp.trainer import EarlyStoppingCallback

from paddle_llm.core.console import say
from paddle_llm.data.counted_batches import (
    LABELLED_POSITIONS,
    POSITION_LABELS,
    CountedBatches,
    count_instruction_tokens,
)
from paddle_llm.data.instructions.formats import Conversation
from paddle_llm.models.head import given_positions_alone
from paddle_llm.models.weights.full_weights import family_name
from paddle_llm.parallel.process.first_rank import on_first_rank
from paddle_llm.peft.attachment import active_attachment
from paddle_llm.peft.methods import adalora
from paddle_llm.peft.targets import anywhere
from paddle_llm.training.step.loss_normalization import find_criterion
from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

# PaddleNLP 3.0.0b4 looks for the optimizer state of every weight (KeyError), and of a tensor that it does not know, LoRA's
# say, it writes the part of the first tensor-parallel rank alone.
_NOT_UNIFIED = (
    "--unified_checkpoint: PaddleNLP cannot resume from one where weights are frozen and ranks are several; checkpoints are "
    "written rank by rank"
)
# On a GPU the head computes logits for a multiple of this many positions: tensors of ever new sizes fragment its memory.
_PICK_MULTIPLE = 256
Scorer = Callable[[PretrainTrainer, Sequence[Conversation], str], dict[str, float]]


@dataclass(frozen=True)
class Answers:
    """What is scored in an evaluation.

    Attributes:
        scorer: (trainer, conversations, prefix of the names) -> {"<prefix>_bleu": ..., ...}; collective over all ranks.
        conversations: by the prefix of an evaluation: "eval", "test".
    """

    scorer: Scorer
    conversations: dict[str, Sequence[Conversation]] = field(default_factory=dict)


class FinetuneTrainer(PretrainTrainer):
    """Trains a network to which `peft.attach` may have attached a method; used like PaddleNLP's Trainer.

    Samples are `InstructionDataset`'s or `PackedDataset`'s, batches `PadAndStack`'s. A checkpoint holds the weights that are
    trained, and not the others: a training is resumed over the model that it began with.

    Args:
        answers: generated and scored in each evaluation; None: the loss alone.
        patience: evaluations without a better metric before the training ends; None: it does not.
    """

    def __init__(
        self, model=None, args=None, *, answers: Answers | None = None, patience: int | None = None, **kwargs: Any
    ):
        # Asked of all ranks: a pipeline stage sees its own layers only, and all stages save and resume alike.
        frozen = anywhere(model is not None and _is_partly_frozen(model))
        if frozen and args is not None and args.unified_checkpoint and args.world_size > 1:
            args.unified_checkpoint = False
            say(_NOT_UNIFIED)
        super().__init__(model=model, args=args, **kwargs)
        self._answers = answers
        self._frozen = frozen or anywhere(_is_partly_frozen(self.model))
        self._base = on_first_rank(self._digest_of_frozen) if self._frozen else None
        budget = adalora.follow(self)
        if budget is not None:
            self.stateful["adalora"] = budget.budget
        if patience is not None:
            self.stateful["patience"] = Patience(patience)
            self.add_callback(self.stateful["patience"])

    def counted_batches(self, collate):
        layout = self.layout
        picks = layout.pipeline == 1 and not layout.sequence_parallel and find_criterion(self.model) is not None
        multiple = _PICK_MULTIPLE if paddle.device.get_device().startswith("gpu") else 1
        return CountedBatches(collate, count_instruction_tokens, multiple if picks else None)

    def compute_loss(self, model, inputs, return_outputs=False):
        if LABELLED_POSITIONS not in inputs:
            return super().compute_loss(model, inputs, return_outputs)
        inputs = dict(inputs)
        positions = inputs.pop(LABELLED_POSITIONS)
        shape, inputs["labels"] = inputs["labels"].shape, inputs.pop(POSITION_LABELS)
        with given_positions_alone(self.model, family_name(self.model), positions, shape):
            return super().compute_loss(model, inputs, return_outputs)

    def further_metrics(self, metric_key_prefix: str) -> dict[str, float]:
        conversations = self._answers.conversations.get(metric_key_prefix) if self._answers else None
        if not conversations:
            return {}
        return self._answers.scorer(self, conversations, metric_key_prefix)

    # --- checkpoints of what is trained --------------------------------------------------------------------------

    def _save(self, output_dir=None, state_dict=None, merge_tensor_parallel=False):
        if not self._frozen or self.args.unified_checkpoint:
            super()._save(output_dir, state_dict, merge_tensor_parallel)
            return
        with _trained_alone(self.model):
            super()._save(output_dir, state_dict, merge_tensor_parallel)

    def _set_state_dict_in_model(self, state_dict):
        with warnings.catch_warnings():
            if self._frozen:
                warnings.filterwarnings("ignore", message="Skip loading for")
            super()._set_state_dict_in_model(state_dict)

    def _identity(self) -> dict:
        attachment = active_attachment(self.model)
        method = None
        if attachment is not None:  # as JSON has it
            method = {k: list(v) if isinstance(v, tuple) else v for k, v in attachment.method.as_dict().items()}
        return {**super()._identity(), "method": method, "base": self._base}

    def _digest_of_frozen(self) -> str:
        """Of a few values of each frozen weight: tells another base, without reading all of it."""
        digest = hashlib.sha256()
        for parameter in self.model.parameters():
            if parameter.stop_gradient and parameter._is_initialized():
                first = parameter[0] if parameter.ndim > 1 else parameter
                digest.update(first.astype("float32").numpy().tobytes())
        return digest.hexdigest()


class Patience(EarlyStoppingCallback):
    """Upstream's, with a count that survives a resume."""

    def state(self) -> dict[str, Any]:
        return {"evaluations": self.early_stopping_patience_counter}

    def restore(self, state: dict[str, Any]) -> None:
        self.early_stopping_patience_counter = int(state["evaluations"])


def _is_partly_frozen(model: Any) -> bool:
    return any(parameter.stop_gradient for parameter in model.parameters())


@contextmanager
def _trained_alone(model: Any) -> Iterator[None]:
    """`model.state_dict()` gives what is trained."""
    whole = model.state_dict

    def trained(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: value for name, value in whole(*args, **kwargs).items() if not value.stop_gradient}

    model.state_dict = trained
    try:
        yield
    finally:
        del model.state_dict
