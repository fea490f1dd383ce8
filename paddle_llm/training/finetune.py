"""One fine-tuning job: instructions, a network with a method attached, their trainer; at the end an adapter or a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from paddlenlp.trainer import TrainingArguments

from paddle_llm.checkpoint.merged_model import save_merged_model
from paddle_llm.checkpoint.model_formats import check_format
from paddle_llm.config.layout import Layout
from paddle_llm.config.reader import Resolved
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.artifacts import ADAPTER_FOLDER, MODEL_FOLDER
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError, is_first_rank
from paddle_llm.data.chat.selection import ChosenTemplate, choose_template
from paddle_llm.data.collate import PadAndStack
from paddle_llm.data.instructions.formats import Conversation
from paddle_llm.data.samples.dataset import InstructionDataset, PackedDataset, load_split
from paddle_llm.data.samples.encode import InstructionEncoder
from paddle_llm.data.samples.encoded_samples import encode_all
from paddle_llm.data.tokenizer import load_tokenizer
from paddle_llm.data.tokenizers.text_codec import TextCodec, open_codec
from paddle_llm.families import Family
from paddle_llm.families.shape import find_family
from paddle_llm.models.build import build_model, plain_configuration
from paddle_llm.peft.adapter_files import base_shape, read_method
from paddle_llm.peft.attach import attach
from paddle_llm.peft.merge import merge
from paddle_llm.peft.method import Method, method_of
from paddle_llm.peft.methods.prompt import PromptedDataset
from paddle_llm.peft.save import continue_from, save_adapter
from paddle_llm.training.epochs import global_batch_of, report_length
from paddle_llm.training.evaluation.generation_settings import settings_of
from paddle_llm.training.options import trainer_options, weights_dtype
from paddle_llm.training.step.loss_normalization import find_criterion
from paddle_llm.training.trainers.finetune_trainer import Answers, FinetuneTrainer

Samples = InstructionDataset | PackedDataset | PromptedDataset
# What a training that goes on from an adapter may change of its method.
_OF_TRAINING = (
    "dropout",
    "lora_plus_scale",
    "initial_rank",
    "warmup_ratio",
    "final_ratio",
    "budget_interval",
    "orthogonal_weight",
)


class Split(NamedTuple):
    """The rows of a split and what they were made of."""

    samples: Samples
    conversations: Sequence[Conversation]


def build_trainer(resolved: Resolved, args: TrainingArguments) -> FinetuneTrainer:
    """Tokenizer, instructions, network, method and trainer of one job."""
    config, layout = resolved.config, resolved.layout
    folder = config.tokenizer_name_or_path or config.model_name_or_path
    tokenizer = load_tokenizer(folder)
    codec = open_codec(tokenizer)
    codec.fit_to_model(resolved.facts.vocab_size)
    chosen = template_of(config, codec, folder)
    encoder = _encoder(config, codec, chosen)
    method = _method(resolved)
    asked = {"train": config.do_train, "dev": config.do_eval, "test": config.do_predict}
    splits = {name: _split(config, encoder, method, name) for name, wanted in asked.items() if wanted}
    if "train" in splits:
        _set_steps(config, args, len(splits["train"].samples))
        report_length(resolved, args.max_steps)
    model = build_network(config, layout, method, find_family(resolved.facts), weights_dtype(config))
    if config.lora_path or config.prefix_path:
        continue_from(model, config.lora_path or config.prefix_path, allow_pickle=config.allow_pickle)
    trainer = FinetuneTrainer(
        model=model,
        args=args,
        layout=layout,
        options=trainer_options(resolved),
        answers=_answers(resolved, codec, encoder, splits),
        patience=config.early_stopping_patience,
        data_collator=collator_of(config, layout, codec.pad_id or 0),
        train_dataset=splits["train"].samples if "train" in splits else None,
        eval_dataset=splits["dev"].samples if "dev" in splits else None,
        tokenizer=tokenizer,
    )
    trainer.chat_template = chosen.as_trained(config.special_tokens_in_content)
    trainer.predict_dataset = splits["test"].samples if "test" in splits else None
    trainer.generation_settings = settings_of(resolved, sorted(encoder.stop_ids))
    return trainer


def build_network(config: RunConfig, layout: Layout, method: Method, family: Family, dtype: str, **options: Any) -> Any:
    """The network of one job: its method attached, its loss smoothed as asked, its tables as long as the longest row.

    Args:
        options: of `attach`.
    """
    config = config.model_copy(update={"max_seq_length": _longest_row(config, layout)})
    model = build_model(config, layout, dtype=dtype)
    check_format(config.model_format, family.name, model.config)
    attach(model, method, layout, family, config.seed, **options)
    find_criterion(model).label_smoothing = config.label_smoothing
    return model


def collator_of(config: RunConfig, layout: Layout, pad_id: int) -> PadAndStack:
    """How rows are padded: to one length where the network expects one, to what tensor ranks divide."""
    # The stages of a pipeline are told the shape of what they get; sequence parallelism unfolds [B * S] by a fixed S.
    fixed = layout.pipeline > 1 or config.sequence_parallel or config.pad_to_max_length
    return PadAndStack(pad_id, _longest_row(config, layout) if fixed else None, _multiple(config, layout))


def save(trainer: FinetuneTrainer, resolved: Resolved) -> None:
    """What was trained: an adapter alone; all weights as one folder, too, where they were trained or are merged."""
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


def _method(resolved: Resolved) -> Method:
    """What the config asks for; where training goes on from an adapter, the adapter's.

    Raises:
        UserError: flags that say otherwise than the adapter.
    """
    wanted = method_of(resolved.config)
    path = resolved.config.lora_path or resolved.config.prefix_path
    if not path:
        return wanted
    family = find_family(resolved.facts)
    base = plain_configuration(Path(resolved.config.model_name_or_path), family, resolved.facts.raw)
    shape = base_shape(family.name, base)
    stored = read_method(Path(path), base=shape, allow_pickle=resolved.config.allow_pickle)
    kept = replace(stored, **{name: getattr(wanted, name) for name in _OF_TRAINING})
    wrong = [
        f"{flag} = {getattr(resolved.config, flag)}, the adapter has {getattr(kept, setting)}"
        for flag, setting in Method.flags().items()
        if not resolved.origins[flag].startswith(("default", "derived"))
        and getattr(kept, setting) != getattr(wanted, setting)
    ]
    if kept.name != wanted.name:
        wrong.append(f"it is of {kept.name}, asked for is {wanted.name}")
    if wrong:
        raise UserError(
            f"training continues {path}, and its settings differ: {'; '.join(wrong)}. Leave out those flags."
        )
    if kept != wanted:
        say(f"the settings of {path} are kept: {kept.describe()}")
    return kept


# ---- data -----------------------------------------------------------------------------------------------------------


def template_of(config: RunConfig, codec: TextCodec, folder: str) -> ChosenTemplate:
    """The chat template of a job, which is reported."""
    chosen = choose_template(config.chat_template, codec, folder, date=config.chat_template_date)
    say(f"prompt template: {chosen.template.name} ({chosen.why})")
    for line in chosen.notices:
        say(line)
    return chosen


def encoder_of(config: RunConfig, codec: TextCodec, folder: str) -> InstructionEncoder:
    """Template and lengths of a job; the template is reported."""
    return _encoder(config, codec, template_of(config, codec, folder))


def _encoder(config: RunConfig, codec: TextCodec, chosen: ChosenTemplate) -> InstructionEncoder:
    return InstructionEncoder(
        codec,
        chosen.template,
        max_length=config.max_length,
        src_length=config.src_length,
        loss_on=config.loss_on,
        special_text_as=config.special_tokens_in_content,
    )


def conversations_of(config: RunConfig, split: str) -> Sequence[Conversation]:
    """The rows of a split, as they are read.

    Raises:
        UserError: there are none, or bad ones.
    """
    found = load_split(
        config.dataset_name_or_path,
        split,
        data_format=config.data_format,
        prompt_templates=config.prompt_templates,
        skip_bad_rows=config.skip_bad_rows,
        seed=config.seed,
    )
    if not found:
        raise UserError(
            f"there is no {split} split in {config.dataset_name_or_path or './data'}: add {split}.json, or leave "
            f"{'--do_eval' if split == 'dev' else '--do_predict'} out."
        )
    return found


def _split(config: RunConfig, encoder: InstructionEncoder, method: Method, name: str) -> Split:
    conversations = conversations_of(config, name)
    encoded = encode_all(
        conversations, encoder, long_samples=config.long_samples, skip_untrainable=config.skip_bad_rows
    )
    say(f"{name}: {encoded.report.samples:,} samples, {encoded.report.answer_tokens:,} tokens that bear loss")
    samples: Samples
    if config.zero_padding and name == "train":
        samples = PackedDataset(encoded, config.max_seq_length, config.seed)
        say(samples.describe())
    else:
        samples = InstructionDataset(encoded)
    return Split(PromptedDataset(samples, method) if method.name == "prompt" else samples, conversations)


def _set_steps(config: RunConfig, args: TrainingArguments, rows: int) -> None:
    """Epochs as steps: as many as see every row, the last one filled up from the epoch after it."""
    if args.max_steps > 0:
        return
    batch, wanted = global_batch_of(args), config.num_train_epochs * rows
    args.max_steps = math.ceil(wanted / batch)
    more = args.max_steps * batch - math.ceil(wanted)
    filled = f", the last one filled with {more} rows of the next epoch" if more else ""
    say(f"{config.num_train_epochs:g} epochs of {rows:,} rows: {args.max_steps} steps of {batch}{filled}")


def _longest_row(config: RunConfig, layout: Layout) -> int:
    longest = config.max_seq_length if config.zero_padding else config.max_length
    longest += config.num_prompt_tokens if config.prompt_tuning else 0
    multiple = _multiple(config, layout)
    return -(-longest // multiple) * multiple


def _multiple(config: RunConfig, layout: Layout) -> int:
    return math.lcm(config.pad_to_multiple_of or 1, layout.tensor if config.sequence_parallel else 1)


# ---- answers --------------------------------------------------------------------------------------------------------


def _answers(
    resolved: Resolved, codec: TextCodec, encoder: InstructionEncoder, splits: dict[str, Split]
) -> Answers | None:
    config = resolved.config
    if not config.eval_with_do_generation:
        return None
    from paddle_llm.training.evaluation.generation import GenerationEvaluation

    scorer = GenerationEvaluation(codec, encoder, config, resolved.layout, find_family(resolved.facts))
    prefixes = {"dev": "eval", "test": "test"}
    return Answers(scorer, {prefix: splits[name].conversations for name, prefix in prefixes.items() if name in splits})
