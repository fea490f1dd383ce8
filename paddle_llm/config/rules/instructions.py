"""Rules about the instructions of fine-tuning, their lengths, and evaluation by generation."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from paddle_llm.config.local_files.chat_templates import find_templates
from paddle_llm.config.local_files.instruction_data import (
    CHAT_TEMPLATES,
    blend_of,
    did_you_mean,
    has_split,
    path_exists,
)
from paddle_llm.config.rules.decoding import beams_with_sampling, generation_problems
from paddle_llm.config.rules.engine import Findings, Notice, Problem, Rule, Run, fine_tuning
from paddle_llm.config.rules.schedule import flags_without_evaluation
from paddle_llm.core.errors import UserError


@fine_tuning
def lengths(run: Run) -> Findings:
    """Lengths leave tokens for an answer, and a packed row contains at least one sample."""
    config = run.config
    if config.src_length is not None and config.src_length >= config.max_length:
        yield Problem(
            f"src_length = {config.src_length} leaves no token for an answer: max_length = {config.max_length} counts the prompt "
            "and the answer. Use a smaller src_length or a larger max_length."
        )
    if "max_seq_length" not in run.requested:
        return
    if not config.zero_padding:
        yield Notice("--max_seq_length has no effect without --zero_padding: --max_length limits the samples.")
    elif config.max_seq_length < config.max_length:
        yield Problem(
            f"max_seq_length = {config.max_seq_length} (a packed row) is shorter than max_length = {config.max_length} (a sample). "
            f"Use {config.max_length} or more."
        )


@fine_tuning
def padding(run: Run) -> Findings:
    """Rows can be split over the tensor parallel ranks, and padding options have an effect."""
    config = run.config
    multiple, tensor = config.pad_to_multiple_of, run.layout.tensor
    if multiple and config.sequence_parallel and multiple % tensor:
        yield Problem(
            f"pad_to_multiple_of = {multiple}: --sequence_parallel splits rows over {tensor} tensor parallel ranks. "
            f"Use a multiple of {tensor}, or drop --pad_to_multiple_of."
        )
    for name in ("pad_to_max_length", "pad_to_multiple_of"):
        if name in run.requested and getattr(config, name) and config.zero_padding:
            yield Notice(f"--{name} has no effect with --zero_padding: all packed rows have the same length.")
    if config.pad_to_max_length and multiple and not config.zero_padding:
        yield Notice("--pad_to_multiple_of has no effect with --pad_to_max_length.")
    if "pad_to_max_length" in run.requested and not config.pad_to_max_length:
        if run.layout.pipeline > 1:
            yield Notice("--pad_to_max_length is on with a pipeline: its stages expect rows of the same length.")
        elif config.sequence_parallel:
            yield Notice(
                "--pad_to_max_length is on with --sequence_parallel: PaddleNLP's layers expect rows of the same length."
            )


@fine_tuning
def dataset_exists(run: Run) -> Findings:
    """The data of fine-tuning exists, with the splits that the run needs."""
    if not run.is_local:
        return
    requested = run.config.dataset_name_or_path
    if requested is None and not Path("data").is_dir():
        yield Problem(
            "dataset_name_or_path is missing, and ./data/train.json does not exist. Give --dataset_name_or_path FILE, or a folder "
            "with train.json and dev.json."
        )
        return
    path = requested or "data"
    parts = [path] if path_exists(path) else blend_of(path)
    if not parts:
        yield Problem(
            f'dataset_name_or_path = {path}: expected one file or folder, or alternating weights and paths. Example: "0.3 a.jsonl 0.7 b/".'
        )
    missing = [part for part in parts if not path_exists(part)]
    for part in missing:
        yield Problem(
            f"dataset_name_or_path = {part}: no such file or folder exists.{did_you_mean(part)} Data sets are not downloaded. Give a file "
            "(json, jsonl, csv, parquet), or a folder with train.json and dev.json."
        )
    if parts and not missing:
        try:
            yield from _splits(run, parts)
        except UserError as error:
            yield Problem(f"dataset_name_or_path: {error}")


def _splits(run: Run, parts: list[str]) -> Findings:
    config = run.config
    if config.do_train:
        for part in parts:
            if not has_split(part, "train"):
                yield Problem(
                    f"dataset_name_or_path = {part}: it has no train.json (or jsonl, csv, parquet).{did_you_mean(part, 'train')} "
                    "Add the file, or name another folder."
                )
    for flag, split in (("do_eval", "dev"), ("do_predict", "test")):
        requested = getattr(config, flag) or (flag == "do_eval" and config.evaluation_strategy in ("steps", "epoch"))
        if requested and not any(has_split(part, split) for part in parts):
            without = f"use {flags_without_evaluation(config)}" if flag == "do_eval" else f"drop --{flag}"
            yield Problem(
                f"--{flag} needs {split}.json, which does not exist in {', '.join(parts)}.{did_you_mean(parts[0], split)} Put it beside "
                f"train.json and give the folder, or {without}."
            )


def _named_templates(run: Run) -> list[str]:
    """Return the names of the chat templates in the tokenizer folder."""
    try:
        found = find_templates(run.config.tokenizer_name_or_path or run.config.model_name_or_path)
    except (OSError, UserError):
        return []
    return list(found.by_name) if found else []


@fine_tuning
def chat_template_exists(run: Run) -> Findings:
    """The chat template, its date and the prompt templates exist."""
    name, file = run.config.chat_template, run.config.prompt_templates
    if run.is_local and name not in CHAT_TEMPLATES and not Path(name).is_file():
        found = _named_templates(run)
        if name.removeprefix("jinja:") not in found:
            known = (*CHAT_TEMPLATES, *found)
            yield Problem(
                f"chat_template = {name} is neither the name of a template nor a file.{did_you_mean(name, *known)} Use one of {', '.join(known)}, or a file."
            )
    try:
        if run.config.chat_template_date is not None:
            datetime.strptime(run.config.chat_template_date, "%Y-%m-%d")
    except ValueError:
        yield Problem(f"chat_template_date = {run.config.chat_template_date} is not a date. Write it as YYYY-MM-DD.")
    if run.is_local and file is not None and not Path(file).is_file():
        yield Problem(f"prompt_templates = {file}: no such file exists.{did_you_mean(file)} Check the path.")


_DECODING_FIELDS = (
    "num_beams",
    "top_k",
    "top_p",
    "temperature",
    "generation_max_new_tokens",
    "generation_batch_size",
    "save_generation_output",
)


@fine_tuning
def generation(run: Run) -> Findings:
    """Evaluation by generation fits the layout, with one decoding strategy."""
    config = run.config
    if not config.eval_with_do_generation:
        for name in _DECODING_FIELDS:
            if name in run.requested:
                yield Notice(f"--{name} has no effect without --eval_with_do_generation.")
        return
    yield from map(Problem, generation_problems(run.layout))
    sampling = [name for name in ("top_k", "top_p", "temperature") if getattr(config, name) is not None]
    if message := beams_with_sampling(config.num_beams, sampling):
        yield Problem(message)
    evaluates = config.do_eval or config.do_predict or config.evaluation_strategy in ("steps", "epoch")
    if not evaluates:
        yield Notice("--eval_with_do_generation has no effect without --do_eval or --do_predict.")


@fine_tuning
def early_stopping(run: Run) -> Findings:
    """Early stopping ends with the best model."""
    config = run.config
    if config.early_stopping_patience is not None and not config.load_best_model_at_end:
        yield Problem(
            "early_stopping_patience without load_best_model_at_end would end with a model that is not the best one. "
            "Add --load_best_model_at_end."
        )


@fine_tuning
def minimum_learning_rate(run: Run) -> Findings:
    """The minimum of the learning rate is given once, and the schedule uses it."""
    config = run.config
    if config.lr_decay_ratio is None:
        return
    if config.min_learning_rate is not None:
        yield Problem(
            "lr_decay_ratio and min_learning_rate both set the minimum of the learning rate. Drop one of them."
        )
    if config.lr_scheduler_type not in ("cosine", "linear"):
        yield Notice(f"--lr_decay_ratio has no effect with --lr_scheduler_type {config.lr_scheduler_type}.")


RULES: list[Rule] = [
    lengths,
    padding,
    dataset_exists,
    chat_template_exists,
    generation,
    early_stopping,
    minimum_learning_rate,
]
