"""`paddle-llm generate`: continue prompts, answer a file of instructions, or chat in the terminal. Training is not imported."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from paddle_llm.cli.number_option import FiniteNumber, WholeNumber
from paddle_llm.cli.path_option import PATH, PATHLIB
from paddle_llm.cli.progress_bar import show_progress
from paddle_llm.core.atomic_output import check_writable, write_atomically
from paddle_llm.core.console import say, stdout_is_unicode
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError, is_first_rank
from paddle_llm.data.chat.notes import describe
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.families.positions import position_limit
from paddle_llm.generation.options import GenerateOptions
from paddle_llm.models.prompt import Prompt

if TYPE_CHECKING:
    from paddle_llm.generation.requests import PromptReader, Request
    from paddle_llm.generation.texts import Answer, Generator

_EXAMPLE = """\b
Examples:
  paddle-llm generate output/llama/model --prompt "The old house" --max_new_tokens 40
  paddle-llm generate models/llama-7b --prompt "Once" --temperature 0.8 --top_p 0.9 --seed 7
  paddle-llm generate models/llama-7b --adapter output/lora/adapter --input dev.jsonl --output answers.jsonl
  paddle-llm generate models/chatglm3-6b --chat
  paddle-llm generate exports/program --static --prompt "Once"
  python -m paddle.distributed.launch --gpus 0,1 $(which paddle-llm) generate models/llama-65b --input questions.jsonl
"""
_SEPARATOR = "---"  # a line between the answers to several prompts
_AT_LEAST_ONE = WholeNumber(1)


@click.command(epilog=_EXAMPLE)
@click.argument("model_folder", type=PATHLIB)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help=f"Text to continue. Repeat the option for several prompts; a line {_SEPARATOR} separates the answers.",
)
@click.option(
    "--input",
    "input_file",
    type=PATHLIB,
    help="File of instructions in any fine-tuning format (jsonl, json, csv, parquet), with or without answers; with any "
    "other suffix, one prompt per line. The answers are written as jsonl.",
)
@click.option("--chat", is_flag=True, help="Chat in the terminal.")
@click.option("--output", type=PATHLIB, help="jsonl file for the answers to --input. [default: stdout]")
@click.option("--overwrite", is_flag=True, help="Replace --output if it exists.")
@click.option("--adapter", type=PATHLIB, help="Folder of an adapter that was trained on the model.")
@click.option(
    "--chat_template",
    "--template",
    "chat_template",
    type=PATH,
    help="none: continue plain text; auto: the template of the model's training, else the tokenizer's, else default; or a "
    "name, jinja (the tokenizer's) or a file. [default: none for texts, auto for instructions and --chat]",
)
@click.option("--chat_template_date", metavar="YYYY-MM-DD", help="Date for templates that insert today's date.")
@click.option("--system", default="", help="System message for conversations that have none. Needs a template.")
@click.option(
    "--data_format", default="auto", show_default=True, help="Format of --input; auto: detected from its keys."
)
@click.option(
    "--max_new_tokens",
    type=_AT_LEAST_ONE,
    help="Maximum length of an answer, in tokens. [default: 64; with a template 512]",
)
@click.option(
    "--batch_size", default=8, show_default=True, type=_AT_LEAST_ONE, help="Number of prompts decoded together."
)
@click.option(
    "--temperature",
    type=FiniteNumber(0, min_open=True),
    help="Sample with this temperature. [default: greedy decoding]",
)
@click.option(
    "--top_p",
    type=FiniteNumber(0, 1, min_open=True),
    help="Sample from the most likely tokens with this total probability.",
)
@click.option("--top_k", type=WholeNumber(0), help="Sample from this many most likely tokens; 0: all.")
@click.option(
    "--repetition_penalty",
    default=1.0,
    show_default=True,
    type=FiniteNumber(0, min_open=True),
    help="Above 1: tokens that already occur become less likely.",
)
@click.option(
    "--num_beams", default=1, show_default=True, type=_AT_LEAST_ONE, help="Number of beams; 1: no beam search."
)
@click.option(
    "--length_penalty",
    default=1.0,
    show_default=True,
    type=FiniteNumber(),
    help="Length penalty of beam search: above 0 favours longer texts, below 0 shorter ones.",
)
@click.option("--seed", default=0, show_default=True, type=WholeNumber(0), help="Seed of the sampling.")
@click.option(
    "--stop_on_repetition/--no_stop_on_repetition",
    default=None,
    help="End a greedy answer that repeats the same tokens exactly: at most 32 tokens, at least 8 times and 64 tokens in all. "
    "[default: on for --prompt and --chat, off for --input]",
)
@click.option("--tokenizer", type=PATHLIB, help="Folder of the tokenizer. [default: MODEL_FOLDER]")
@click.option("--allow_pickle", is_flag=True, help="Read torch's pytorch_model.bin if there are no safetensors.")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), help="[default: gpu if available]")
@click.option("--static", is_flag=True, help="MODEL_FOLDER is a static export: run its program in paddle.inference.")
def generate(
    model_folder: Path,
    prompts: tuple[str, ...],
    input_file: Path | None,
    chat: bool,
    output: Path | None,
    data_format: str,
    **options: Any,
) -> None:
    """Continue --prompt, answer --input, or --chat with the model in MODEL_FOLDER (PaddleNLP's or Hugging Face's files).

    Decoding is greedy, unless --temperature, --top_p or --top_k selects sampling, or --num_beams selects beam search. Under
    paddle.distributed.launch the ranks share the model (tensor parallel), and the first rank prints.
    """
    from paddle_llm.generation.api import continuation, open_generator
    from paddle_llm.generation.folders import resolve_folders
    from paddle_llm.generation.requests import Request, read_requests
    from paddle_llm.generation.texts import repetition_notice

    overwrite, stop = options.pop("overwrite"), options.pop("stop_on_repetition")
    settings = GenerateOptions(**options)
    if stop is None:  # an answer from a file may be scored, so it is not changed
        stop = input_file is None and settings.strategy.is_greedy
    settings = replace(settings, stop_on_repetition=stop)
    _check_options(model_folder, (prompts, input_file, chat), output, overwrite, settings)
    model_folder, settings = resolve_folders(model_folder, settings)
    requests = [Request(text, where="--prompt") for text in prompts]
    if input_file is not None:
        requests = read_requests(input_file, data_format)
    generator, reader = open_generator(model_folder, requests, settings)
    from paddle_llm.generation.eval_mode import generating  # imports Paddle

    say(reader.notice)
    if chat:
        from paddle_llm.generation.chat import Chat

        with generating(generator.model):
            Chat(generator, reader).run()
        return
    encoded = [reader(request) for request in requests]
    if not reader.encoder:
        for prompt in encoded:
            generator.check_length(prompt)
    _report_fitting(requests, encoded, generator)
    with generating(generator.model), show_progress("answers", len(encoded), shown=input_file is not None) as on_batch:
        answers = generator(encoded, range(len(encoded)), settings.batch_size, on_batch)
    if not is_first_rank():
        return
    where, advice = [request.where for request in requests], "--no_stop_on_repetition generates them completely."
    if notice := repetition_notice(answers, where, advice):
        say(notice)
    if input_file is None:
        for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            if number:
                click.echo(_SEPARATOR)
            plain = reader.encoder is None
            click.echo(request.text + continuation(request.text, answer, generator.codec) if plain else answer.text)
        return
    _write(_rows(requests, encoded, answers, generator.codec, reader), output)


def _report_fitting(requests: Sequence[Request], encoded: Sequence[Prompt], generator: Generator) -> None:
    """Report what the template omits, how many prompts were truncated, and how many answers the positions limit."""
    from paddle_llm.generation.texts import with_learned_prompt

    limits = [generator.limit_for(with_learned_prompt(prompt, generator.model)) for prompt in encoded]
    problems = {
        "prompts were truncated: the beginning of the question was cut off": [prompt.is_cut for prompt in encoded],
        "prompts were truncated: their oldest rounds were dropped": [prompt.dropped_rounds > 0 for prompt in encoded],
        "answers are shorter than --max_new_tokens allows": [limit < generator.max_new_tokens for limit in limits],
    }
    for kind in dict.fromkeys(kind for prompt in encoded for kind in prompt.notes):
        where = [request.where for request, prompt in zip(requests, encoded, strict=True) if kind in prompt.notes]
        say(f"{describe(kind, len(where))} (first: {where[0]})")
    for problem, affected in problems.items():
        first = next(
            (request.where for request, is_affected in zip(requests, affected, strict=True) if is_affected), None
        )
        if first is not None:
            say(
                f"{sum(affected)} of {len(encoded)} {problem} (first: {first}). The model has "
                f"{position_limit(generator.model.config)} positions, of which {generator.max_new_tokens} are reserved for an answer. "
                "Shorten the prompts, or lower --max_new_tokens."
            )


def _check_options(
    model_folder: Path,
    tasks: tuple[Sequence[str], Path | None, bool],
    output: Path | None,
    overwrite: bool,
    settings: GenerateOptions,
) -> None:
    """Raise UserError for options that cannot be combined, before anything is loaded."""
    from paddle_llm.generation.api import check_chat_template

    prompts, input_file, chat = tasks
    given = [name for name, value in (("--prompt", prompts), ("--input", input_file), ("--chat", chat)) if value]
    if len(given) != 1:
        problem = f"{' and '.join(given)} cannot be combined" if given else "nothing to do"
        raise UserError(f"{problem}. Give one of --prompt, --input and --chat.")
    _check_output(output, input_file, overwrite)
    check_chat_template(model_folder, settings)
    settings.check()
    if chat:
        if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
            raise UserError("--chat needs a terminal, which the ranks of a launch do not have. Run it in one process.")
        if settings.num_beams > 1:
            raise UserError("--chat prints tokens as they are generated, which beam search cannot. Drop --num_beams.")


def _check_output(output: Path | None, input_file: Path | None, overwrite: bool) -> None:
    if output is None:
        return
    if input_file is None:
        raise UserError("--output is for the answers to --input. Add --input, or drop --output.")
    if output.exists() and output.resolve() == input_file.resolve():
        raise UserError(f"--output {output} is the file of --input, which would be lost. Name another file.")
    if output.exists() and not (overwrite and output.is_file()):
        raise UserError(f"--output {output} already exists. Name another file, or replace it with --overwrite.")
    check_writable(output, "--output")


# ---- files ----------------------------------------------------------------------------------------------------------


def _rows(
    requests: Sequence[Request],
    encoded: Sequence[Prompt],
    answers: Sequence[Answer],
    codec: TextCodec,
    reader: PromptReader,
) -> list[dict[str, Any]]:
    from paddle_llm.generation.api import continuation

    rows = []
    for request, prompt, answer in zip(requests, encoded, answers, strict=True):
        row = {"prompt": request.text, "generated": ""}
        if reader.encoder is None:
            row["generated"] = continuation(request.text, answer, codec)
        else:
            row |= {"prompt": codec.show(prompt.ids), "generated": answer.text}
        if request.reference is not None:
            row["reference"] = request.reference
        rows.append({**row, "where": request.where})
    return rows


def _write(rows: Sequence[dict[str, Any]], output: Path | None) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    printed = lines if stdout_is_unicode() else "".join(json.dumps(row) + "\n" for row in rows)
    if output is None:
        sys.stdout.write(printed)
    else:
        try:
            write_atomically(output, lines.encode("utf-8", "backslashreplace"))  # a file name may hold surrogates
        except UserError as error:  # the answers may have taken hours
            sys.stdout.write(printed)
            raise UserError(f"--output {error} The answers were written to stdout instead.") from None
        say(f"{counted(len(rows), 'answer')}: {output}")
    pairs = [(row["generated"], row["reference"]) for row in rows if "reference" in row]
    if pairs:
        _show_scores(pairs, len(rows))


def _show_scores(pairs: Sequence[tuple[str, str]], count: int) -> None:
    from paddle_llm.generation.scores import score

    say(f"{len(pairs)} of {count} answers have a reference")
    table = Table()
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in score(*zip(*pairs, strict=True)).items():
        table.add_row(name, f"{value:.2f}" if name == "bleu" else f"{value:.4f}")
    Console(stderr=True).print(table)
