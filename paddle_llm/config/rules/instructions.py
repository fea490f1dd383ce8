"""Rules about the instructions that fine-tuning reads, their lengths, and evaluation by generating."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from paddle_llm.config.local_files.chat_templates import find_templates
from paddle_llm.config.local_files.instruction_data import CHAT_TEMPLATES, blend_of, has_split, is_there, near
from paddle_llm.config.rules.engine import Findings, Notice, Problem, Rule, Run, fine_tuning
from paddle_llm.core.errors import UserError


@fine_tuning
def lengths(run: Run) -> Findings:
    config = run.config
    if config.src_length is not None and config.src_length >= config.max_length:
        yield Problem(
            f"src_length = {config.src_length} leaves no room for an answer within max_length = {config.max_length}, "
            "which counts both."
        )
    if "max_seq_length" not in run.requested:
        return
    if not config.zero_padding:
        yield Notice("--max_seq_length has no effect without --zero_padding: --max_length says how long samples are.")
    elif config.max_seq_length < config.max_length:
        yield Problem(
            f"max_seq_length = {config.max_seq_length}, a packed row, is shorter than a sample of max_length = {config.max_length}."
        )


@fine_tuning
def padding(run: Run) -> Findings:
    config = run.config
    multiple, tensor = config.pad_to_multiple_of, run.layout.tensor
    if multiple and config.sequence_parallel and multiple % tensor:
        yield Problem(
            f"pad_to_multiple_of = {multiple}: with --sequence_parallel rows are split over {tensor} tensor parallel ranks: "
            f"give a multiple of {tensor}, or leave it out."
        )
    for name in ("pad_to_max_length", "pad_to_multiple_of"):
        if name in run.requested and getattr(config, name) and config.zero_padding:
            yield Notice(f"--{name} has no effect with --zero_padding: every packed row has one length.")
    if config.pad_to_max_length and multiple and not config.zero_padding:
        yield Notice("--pad_to_multiple_of has no effect with --pad_to_max_length.")
    if "pad_to_max_length" in run.requested and not config.pad_to_max_length:
        if run.layout.pipeline > 1:
            yield Notice("--pad_to_max_length is true with a pipeline: its stages expect rows of one length.")
        elif config.sequence_parallel:
            yield Notice(
                "--pad_to_max_length is true with --sequence_parallel: PaddleNLP's layers expect rows of one length."
            )


@fine_tuning
def instructions_are_there(run: Run) -> Findings:
    if not run.is_local:
        return
    asked = run.config.dataset_name_or_path
    if asked is None and not Path("data").is_dir():
        yield Problem(
            "dataset_name_or_path is missing, and there is no ./data/train.json: give --dataset_name_or_path FILE, or a folder "
            "with train.json and dev.json."
        )
        return
    path = asked or "data"
    parts = [path] if is_there(path) else blend_of(path)
    if not parts:
        yield Problem(
            f'dataset_name_or_path = {path}: expected one file or folder, or weights and paths in turn: "0.3 a.jsonl 0.7 b/".'
        )
    missing = [part for part in parts if not is_there(part)]
    for part in missing:
        yield Problem(
            f"dataset_name_or_path: there is no file or folder {part}.{near(part)} Data sets are not downloaded: give a file "
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
                    f"dataset_name_or_path: {part} holds no train.json (or jsonl, csv, parquet).{near(part, 'train')}"
                )
    for flag, split in (("do_eval", "dev"), ("do_predict", "test")):
        asked = getattr(config, flag) or (flag == "do_eval" and config.evaluation_strategy in ("steps", "epoch"))
        if asked and not any(has_split(part, split) for part in parts):
            yield Problem(
                f"--{flag}, but {', '.join(parts)} has no {split}.json: put one beside train.json and name the folder, "
                f"or leave --{flag} out.{near(parts[0], split)}"
            )


def _named_templates(run: Run) -> list[str]:
    """Names in the list of templates that the tokenizer's folder brings."""
    try:
        found = find_templates(run.config.tokenizer_name_or_path or run.config.model_name_or_path)
    except (OSError, UserError):
        return []
    return list(found.by_name) if found else []


@fine_tuning
def template_is_there(run: Run) -> Findings:
    name, file = run.config.chat_template, run.config.prompt_templates
    if run.is_local and name not in CHAT_TEMPLATES and not Path(name).is_file():
        found = _named_templates(run)
        if name.removeprefix("jinja:") not in found:
            known = (*CHAT_TEMPLATES, *found)
            yield Problem(
                f"chat_template = {name}: neither a template nor a file. There are {', '.join(known)}.{near(name, *known)}"
            )
    try:
        if run.config.chat_template_date is not None:
            datetime.strptime(run.config.chat_template_date, "%Y-%m-%d")
    except ValueError:
        yield Problem(f"chat_template_date = {run.config.chat_template_date}: not a date. Write it as YYYY-MM-DD.")
    if run.is_local and file is not None and not Path(file).is_file():
        yield Problem(f"prompt_templates = {file}: there is no such file.{near(file)}")


_CHOICES_OF_WORDS = (
    "num_beams",
    "top_k",
    "top_p",
    "temperature",
    "generation_max_new_tokens",
    "generation_batch_size",
    "save_generation_output",
)


@fine_tuning
def generating(run: Run) -> Findings:
    config = run.config
    if not config.eval_with_do_generation:
        for name in _CHOICES_OF_WORDS:
            if name in run.requested:
                yield Notice(f"--{name} has no effect without --eval_with_do_generation.")
        return
    if run.layout.pipeline > 1:
        yield Problem(
            f"eval_with_do_generation with pipeline_parallel_degree = {run.layout.pipeline}: stages cannot generate word by word. "
            "Leave it out and evaluate the loss; afterwards `paddle-llm generate OUTPUT_DIR/model` generates, also on tensor ranks."
        )
    if config.sequence_parallel:
        yield Problem(
            "eval_with_do_generation with sequence_parallel: one word cannot be split along the sequence. Leave one of them out."
        )
    sampled = [name for name in ("top_k", "top_p", "temperature") if getattr(config, name) is not None]
    if config.num_beams > 1 and sampled:
        yield Problem(f"num_beams = {config.num_beams} searches, --{sampled[0]} samples: keep one of them.")
    evaluates = config.do_eval or config.do_predict or config.evaluation_strategy in ("steps", "epoch")
    if not evaluates:
        yield Notice("--eval_with_do_generation has no effect without --do_eval or --do_predict.")


@fine_tuning
def early_stopping(run: Run) -> Findings:
    config = run.config
    if config.early_stopping_patience is not None and not config.load_best_model_at_end:
        yield Problem(
            "early_stopping_patience stops at a model that is no longer the best: give --load_best_model_at_end with it."
        )


@fine_tuning
def least_learning_rate(run: Run) -> Findings:
    config = run.config
    if config.lr_decay_ratio is None:
        return
    if config.min_learning_rate is not None:
        yield Problem("lr_decay_ratio and min_learning_rate say the same: keep one.")
    if config.lr_scheduler_type not in ("cosine", "linear"):
        yield Notice(f"--lr_decay_ratio has no effect with --lr_scheduler_type {config.lr_scheduler_type}.")


RULES: list[Rule] = [
    lengths,
    padding,
    instructions_are_there,
    template_is_there,
    generating,
    early_stopping,
    least_learning_rate,
]
