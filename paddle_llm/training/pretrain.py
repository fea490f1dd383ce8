"""One pretraining job: a tokenised corpus, a network, their trainer; at the end one model folder."""

from __future__ import annotations

from pathlib import Path

from paddlenlp.trainer import TrainingArguments

from paddle_llm.checkpoint.merged_model import save_merged_model
from paddle_llm.checkpoint.model_formats import check_format
from paddle_llm.config.reader import Resolved
from paddle_llm.core.artifacts import MODEL_FOLDER
from paddle_llm.core.errors import is_first_rank
from paddle_llm.data.corpus.dataset import build_pretrain_datasets, training_samples
from paddle_llm.data.tokenizer import load_tokenizer
from paddle_llm.models.build import build_model
from paddle_llm.models.chatglm_pretrain import sample_transform
from paddle_llm.models.weights.full_weights import family_name
from paddle_llm.training.epochs import global_batch_of, report_length
from paddle_llm.training.evaluation.generation_settings import settings_of
from paddle_llm.training.options import trainer_options, weights_dtype
from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer


def build_trainer(resolved: Resolved, args: TrainingArguments) -> PretrainTrainer:
    """Tokenizer, data, model and trainer of one job."""
    config, layout = resolved.config, resolved.layout
    tokenizer = load_tokenizer(config.tokenizer_name_or_path or config.model_name_or_path)
    splits = _build_data(resolved, args, tokenizer)
    model = build_model(config, layout, dtype=weights_dtype(config))
    check_format(config.model_format, family_name(model), model.config)
    trainer = PretrainTrainer(
        model=model,
        args=args,
        layout=layout,
        options=trainer_options(resolved),
        train_dataset=splits.train,
        eval_dataset=splits.valid,
        tokenizer=tokenizer,
    )
    trainer.predict_dataset = splits.test
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    trainer.generation_settings = settings_of(resolved, ends)
    return trainer


def _build_data(resolved: Resolved, args: TrainingArguments, tokenizer):
    """Training, evaluation and prediction samples in the one global order."""
    config = resolved.config
    train = training_samples(config, global_batch_of(args)) if config.do_train else 0
    if train:
        report_length(resolved, train // global_batch_of(args))
    evaluation = config.eval_iters * args.per_device_eval_batch_size * resolved.layout.data_world_size
    return build_pretrain_datasets(
        config,
        train_samples=train,
        eval_samples=evaluation if config.do_eval else 0,
        predict_samples=evaluation if config.do_predict else 0,
        seq_length=config.max_seq_length,
        eos_id=tokenizer.eos_token_id,
        vocab_size=resolved.facts.vocab_size,
        transform=sample_transform(resolved.facts, tokenizer),
    )


def save(trainer: PretrainTrainer, resolved: Resolved) -> None:
    """The trained weights as one folder that any layout, `generate` and --continue_training 1 load."""
    folder = Path(resolved.config.output_dir) / MODEL_FOLDER
    config = resolved.config
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
