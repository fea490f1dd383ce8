"""One pretraining job: load the corpus, build network and trainer, save the model folder at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlenlp.trainer import TrainingArguments

from paddle_llm.checkpoint.merged_model import save_merged_model
from paddle_llm.checkpoint.model_formats import check_format
from paddle_llm.config.layout import Layout
from paddle_llm.config.reader import Resolved
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.artifacts import MODEL_FOLDER
from paddle_llm.core.errors import is_first_rank
from paddle_llm.data.corpus.dataset import build_pretrain_datasets, training_samples
from paddle_llm.data.tokenizer import find_fingerprint, load_tokenizer
from paddle_llm.families.facts import ModelFacts
from paddle_llm.models.build import build_model
from paddle_llm.models.chatglm_pretrain import sample_transform
from paddle_llm.models.weights.full_weights import family_name
from paddle_llm.parallel.process.first_rank import on_first_rank
from paddle_llm.training.epochs import global_batch_of, position_of, report_length
from paddle_llm.training.evaluation.generation_settings import generation_settings
from paddle_llm.training.options import trainer_options, weights_dtype
from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

if TYPE_CHECKING:
    import paddle

    from paddle_llm.data.tokenizers.protocol import Tokenizer


@dataclass(frozen=True)
class PretrainData:
    """Data of a pretraining job.

    Attributes:
        train: Training samples in the global order; None without training.
        evaluation: Evaluation samples; None without evaluation.
        prediction: Samples of the final evaluation (`--do_predict`); None without one.
        tokenizer: Tokenizer to save beside the weights; None to save none.
        generation_settings: Content of generation_config.json beside the weights.
        tokenizer_fingerprint: Fingerprint of the tokenizer; None if it is not a local folder.
    """

    train: paddle.io.Dataset | None = None
    evaluation: paddle.io.Dataset | None = None
    prediction: paddle.io.Dataset | None = None
    tokenizer: Tokenizer | None = None
    generation_settings: dict[str, Any] = field(default_factory=dict)
    tokenizer_fingerprint: str | None = None


def load_data(resolved: Resolved, args: TrainingArguments) -> PretrainData:
    """Load the tokenizer and the corpus of a job.

    Args:
        resolved: Configuration of the job.
        args: Arguments from `training_arguments`.

    Raises:
        UserError: If the corpus or the tokenizer cannot be read or does not fit the model.
    """
    config, facts = resolved.config, resolved.facts
    assert facts is not None
    folder = config.tokenizer_name_or_path or config.model_name_or_path
    tokenizer = load_tokenizer(folder)
    batch, position = global_batch_of(args), position_of(args)
    train = training_samples(config, batch) if config.do_train else 0
    if train:
        steps = config.max_steps if config.max_steps > 0 else position.steps_of(train, batch)
        train = position.samples_at(steps, batch)
        report_length(resolved, steps)
    evaluation = config.eval_iters * args.per_device_eval_batch_size * resolved.layout.data_world_size
    splits = build_pretrain_datasets(
        config,
        train_samples=train,
        eval_samples=evaluation if config.do_eval else 0,
        predict_samples=evaluation if config.do_predict else 0,
        seq_length=config.max_seq_length,
        eos_id=tokenizer.eos_token_id,
        vocab_size=facts.vocab_size,
        transform=sample_transform(facts, tokenizer),
    )
    stop_ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return PretrainData(
        train=splits.train,
        evaluation=splits.valid,
        prediction=splits.test,
        tokenizer=tokenizer,
        generation_settings=generation_settings(config.model_name_or_path, facts, stop_ids),
        tokenizer_fingerprint=on_first_rank(lambda: find_fingerprint(folder)),
    )


def make_trainer(
    config: RunConfig, layout: Layout, data: PretrainData, *, args: TrainingArguments, facts: ModelFacts
) -> PretrainTrainer:
    """Build the network and the trainer of a job, or of a rehearsal.

    Args:
        config: Configuration of the job.
        layout: Layout of the job.
        data: Data of the job.
        args: Arguments from `training_arguments`.
        facts: Shape of the model.
    """
    model = build_model(config, layout, dtype=weights_dtype(config))
    check_format(config.model_format, family_name(model), model.config)
    return PretrainTrainer(
        model=model,
        args=args,
        layout=layout,
        options=trainer_options(config, facts),
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        predict_dataset=data.prediction,
        tokenizer=data.tokenizer,
        generation_settings=data.generation_settings,
        tokenizer_fingerprint=data.tokenizer_fingerprint,
    )


def save(trainer: PretrainTrainer, resolved: Resolved) -> None:
    """Save the trained weights as one folder that any layout, `generate` and --continue_training 1 can load.

    Args:
        trainer: Trainer after training.
        resolved: Configuration of the job.
    """
    config = resolved.config
    folder = Path(config.output_dir) / MODEL_FOLDER
    save_merged_model(
        trainer.model,
        resolved.layout,
        folder,
        tokenizer=trainer.tokenizer,
        tokenizer_source=config.tokenizer_name_or_path or config.model_name_or_path,
        generation=trainer.generation_settings,
        model_format=config.model_format,
    )
    if is_first_rank():
        print(folder)
