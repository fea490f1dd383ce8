"""One fine-tuning job: load instructions, build network, method and trainer, save an adapter or a model at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlenlp.trainer import TrainingArguments

from paddle_llm.checkpoint.merged_model import save_merged_model
from paddle_llm.checkpoint.model_formats import check_format
from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.chat_templates import TrainingTemplate
from paddle_llm.config.reader import Resolved
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.artifacts import ADAPTER_FOLDER, MODEL_FOLDER
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError, is_first_rank
from paddle_llm.data.collate import PadAndStack
from paddle_llm.data.samples.encode import InstructionEncoder
from paddle_llm.data.tokenizer import find_fingerprint, load_tokenizer
from paddle_llm.data.tokenizers.text_codec import TextCodec, open_codec
from paddle_llm.families import Family
from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.shape import find_family
from paddle_llm.models.build import build_model, plain_configuration
from paddle_llm.parallel.process.first_rank import on_first_rank
from paddle_llm.peft.adapter_files import base_shape, read_method
from paddle_llm.peft.attach import attach
from paddle_llm.peft.merge import merge
from paddle_llm.peft.method import Method, method_of
from paddle_llm.peft.save import continue_from, save_adapter
from paddle_llm.training.epochs import report_length
from paddle_llm.training.evaluation.generation import GenerationEvaluation
from paddle_llm.training.evaluation.generation_settings import generation_settings
from paddle_llm.training.instruction_splits import Split, encoder_of, load_samples, select_template, set_steps
from paddle_llm.training.options import trainer_options, weights_dtype
from paddle_llm.training.step.loss_normalization import find_criterion
from paddle_llm.training.trainers.finetune_trainer import Answers, FinetuneTrainer

if TYPE_CHECKING:
    import paddle

    from paddle_llm.data.tokenizers.protocol import Tokenizer
    from paddle_llm.models.protocols import LanguageModel

# Settings of a method that may differ from those of the adapter from which a training continues.
_CHANGEABLE = (
    "dropout",
    "lora_plus_scale",
    "initial_rank",
    "warmup_ratio",
    "final_ratio",
    "budget_interval",
    "orthogonal_weight",
)
# Split -> prefix of the names of its metrics.
_METRIC_PREFIXES = {"dev": "eval", "test": "test"}


@dataclass(frozen=True)
class FinetuneData:
    """Data of a fine-tuning job.

    Attributes:
        method: Fine-tuning method, which decides how samples are built.
        train: Training samples; None without training.
        evaluation: Evaluation samples; None without evaluation.
        prediction: Samples of the final evaluation (`--do_predict`); None without one.
        pad_id: Token id of padding.
        tokenizer: Tokenizer to save beside the weights; None to save none.
        answers: Answers to generate and score in each evaluation; None to compute the loss only.
        chat_template: Chat template to save beside the weights; None to save none.
        generation_settings: Content of generation_config.json beside the weights.
        tokenizer_fingerprint: Fingerprint of the tokenizer; None if it is not a local folder.
    """

    method: Method
    train: paddle.io.Dataset | None = None
    evaluation: paddle.io.Dataset | None = None
    prediction: paddle.io.Dataset | None = None
    pad_id: int = 0
    tokenizer: Tokenizer | None = None
    answers: Answers | None = None
    chat_template: TrainingTemplate | None = None
    generation_settings: dict[str, Any] = field(default_factory=dict)
    tokenizer_fingerprint: str | None = None


def load_data(resolved: Resolved, args: TrainingArguments) -> FinetuneData:
    """Load the tokenizer and the instructions of a job, and set the number of steps.

    Args:
        resolved: Configuration of the job.
        args: Arguments from `training_arguments`; `max_steps` is set if it is not.

    Raises:
        UserError: If instructions, tokenizer or adapter cannot be read or do not fit the model.
    """
    config, facts = resolved.config, resolved.facts
    assert facts is not None
    folder = config.tokenizer_name_or_path or config.model_name_or_path
    tokenizer = load_tokenizer(folder)
    codec = open_codec(tokenizer)
    codec.fit_to_model(facts.vocab_size)
    chosen = select_template(config, codec, folder)
    encoder = encoder_of(config, codec, chosen)
    method = _method_of_job(resolved)
    requested = {"train": config.do_train, "dev": config.do_eval, "test": config.do_predict}
    splits = {name: load_samples(config, encoder, method, name) for name, wanted in requested.items() if wanted}
    samples = {name: split.samples for name, split in splits.items()}
    if "train" in samples:
        set_steps(config, args, len(samples["train"]))
        report_length(resolved, args.max_steps)
    return FinetuneData(
        method=method,
        train=samples.get("train"),
        evaluation=samples.get("dev"),
        prediction=samples.get("test"),
        pad_id=codec.pad_id or 0,
        tokenizer=tokenizer,
        answers=_answers_to_score(resolved, codec, encoder, splits),
        chat_template=chosen.as_trained(config.special_tokens_in_content),
        generation_settings=generation_settings(config.model_name_or_path, facts, sorted(encoder.stop_ids)),
        tokenizer_fingerprint=on_first_rank(lambda: find_fingerprint(folder)),
    )


def make_trainer(
    config: RunConfig, layout: Layout, data: FinetuneData, *, args: TrainingArguments, facts: ModelFacts
) -> FinetuneTrainer:
    """Build the network, its method and the trainer of a job, or of a rehearsal.

    Args:
        config: Configuration of the job.
        layout: Layout of the job.
        data: Data of the job.
        args: Arguments from `training_arguments`.
        facts: Shape of the model.
    """
    model = build_network(config, layout, data.method, find_family(facts), weights_dtype(config))
    adapter = config.lora_path or config.prefix_path
    if adapter:
        continue_from(model, adapter, allow_pickle=config.allow_pickle)
    return FinetuneTrainer(
        model=model,
        args=args,
        layout=layout,
        options=trainer_options(config, facts),
        answers=data.answers,
        patience=config.early_stopping_patience,
        data_collator=make_collator(config, layout, data.pad_id),
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        predict_dataset=data.prediction,
        tokenizer=data.tokenizer,
        generation_settings=data.generation_settings,
        chat_template=data.chat_template,
        tokenizer_fingerprint=data.tokenizer_fingerprint,
    )


def build_network(config: RunConfig, layout: Layout, method: Method, family: Family, dtype: str) -> LanguageModel:
    """Build the network of a job, with its method, its label smoothing and positions for its longest row.

    Args:
        config: Configuration of the job.
        layout: Layout of the job.
        method: Fine-tuning method.
        family: Family of the model.
        dtype: Type of the weights, as in `build_model`.
    """
    config = config.model_copy(update={"max_seq_length": _longest_row(config, layout)})
    model = build_model(config, layout, dtype=dtype)
    check_format(config.model_format, family.name, model.config)
    attach(model, method, layout, seed=config.seed)
    criterion = find_criterion(model)
    assert criterion is not None
    criterion.label_smoothing = config.label_smoothing
    return model


def make_collator(config: RunConfig, layout: Layout, pad_id: int) -> PadAndStack:
    """Return the collator of a job: rows are padded to a fixed length where the network needs one.

    Pipeline stages agree on the shape of their messages only once, and sequence parallelism reshapes [B * S] with a
    fixed S. Every length is a multiple of the tensor-parallel degree with sequence parallelism.

    Args:
        config: Configuration of the job.
        layout: Layout of the job.
        pad_id: Token id of padding.
    """
    is_fixed = layout.pipeline > 1 or config.sequence_parallel or config.pad_to_max_length
    return PadAndStack(pad_id, _longest_row(config, layout) if is_fixed else None, _length_multiple(config, layout))


def save(trainer: FinetuneTrainer, resolved: Resolved) -> None:
    """Save the adapter, or all weights as one folder if they were trained; both with --merge_weights.

    Args:
        trainer: Trainer after training.
        resolved: Configuration of the job.
    """
    config, layout = resolved.config, resolved.layout
    method, output = method_of(config), Path(config.output_dir)
    folders = []
    if method.adds_tensors:
        folders.append(output / ADAPTER_FOLDER)
        save_adapter(
            trainer.model, layout, folders[-1], base=config.model_name_or_path, extra=trainer.write_chat_template
        )
    if not method.adds_tensors or config.merge_weights:
        if method.adds_tensors:
            merge(trainer.model)
        folders.append(output / MODEL_FOLDER)
        save_merged_model(
            trainer.model,
            layout,
            folders[-1],
            tokenizer=trainer.tokenizer,
            generation=trainer.generation_settings,
            extra=trainer.write_chat_template,
            tokenizer_source=config.tokenizer_name_or_path or config.model_name_or_path,
            model_format=config.model_format,
        )
    if is_first_rank():
        print(*folders, sep="\n")


# ---- method ---------------------------------------------------------------------------------------------------------


def _method_of_job(resolved: Resolved) -> Method:
    """Return the method of the config, or that of the adapter from which the training continues.

    Raises:
        UserError: If a flag contradicts the adapter.
    """
    wanted = method_of(resolved.config)
    path = resolved.config.lora_path or resolved.config.prefix_path
    if not path:
        return wanted
    assert resolved.facts is not None
    family = find_family(resolved.facts)
    base = plain_configuration(Path(resolved.config.model_name_or_path), family, resolved.facts.raw)
    shape = base_shape(family.name, base)
    stored = read_method(Path(path), base=shape, allow_pickle=resolved.config.allow_pickle)
    kept = replace(stored, **{name: getattr(wanted, name) for name in _CHANGEABLE})
    wrong = [
        f"--{flag} is {getattr(resolved.config, flag)}, but the adapter has {getattr(kept, setting)}"
        for flag, setting in Method.flags().items()
        if not resolved.origins[flag].startswith(("default", "derived"))
        and getattr(kept, setting) != getattr(wanted, setting)
    ]
    if kept.name != wanted.name:
        wrong.append(f"the config requests {wanted.name}, but the adapter's method is {kept.name}")
    if wrong:
        raise UserError(f"adapter {path} was trained with different settings: {'; '.join(wrong)}. Drop these flags.")
    if kept != wanted:
        say(f"using the settings of adapter {path}: {kept.describe()}")
    return kept


# ---- rows -----------------------------------------------------------------------------------------------------------


def _longest_row(config: RunConfig, layout: Layout) -> int:
    longest = config.max_seq_length if config.zero_padding else config.max_length
    longest += config.num_prompt_tokens if config.prompt_tuning else 0
    multiple = _length_multiple(config, layout)
    return -(-longest // multiple) * multiple


def _length_multiple(config: RunConfig, layout: Layout) -> int:
    return math.lcm(config.pad_to_multiple_of or 1, layout.tensor if config.sequence_parallel else 1)


# ---- answers --------------------------------------------------------------------------------------------------------


def _answers_to_score(
    resolved: Resolved, codec: TextCodec, encoder: InstructionEncoder, splits: dict[str, Split]
) -> Answers | None:
    config = resolved.config
    if not config.eval_with_do_generation:
        return None
    assert resolved.facts is not None
    scorer = GenerationEvaluation(codec, encoder, config, resolved.layout, find_family(resolved.facts))
    return Answers(
        scorer, {prefix: splits[name].conversations for name, prefix in _METRIC_PREFIXES.items() if name in splits}
    )
