"""`paddle-llm generate`: continue prompts, answer a file of instructions, or chat in the terminal. Imports nothing of training."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paddle_llm.cli.number_option import Finite, Whole
from paddle_llm.cli.path_option import PATH, PATHLIB
from paddle_llm.core.atomic_output import check_writable
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError, is_first_rank
from paddle_llm.core.output import stdout_is_unicode
from paddle_llm.generation.sampling import Choice

if TYPE_CHECKING:
    from paddle_llm.generation.network import Loaded
    from paddle_llm.generation.requests import Reader, Request
    from paddle_llm.generation.texts import Answer, Generator
    from paddle_llm.models.prompt import Prompt

_EXAMPLE = """\b
Examples:
  paddle-llm generate output/llama/model --prompt "The old house" --max_new_tokens 40
  paddle-llm generate models/llama-7b --prompt "Once" --temperature 0.8 --top_p 0.9 --seed 7
  paddle-llm generate models/llama-7b --adapter output/lora/adapter --input dev.jsonl --output answers.jsonl
  paddle-llm generate models/chatglm3-6b --chat
  paddle-llm generate exports/program --static --prompt "Once"
  python -m paddle.distributed.launch --gpus 0,1 $(which paddle-llm) generate models/llama-65b --input questions.jsonl
"""
_ROOM, _ROOM_OF_ANSWERS = 64, 512
_DEFAULTS = {"repetition_penalty": 1.0, "num_beams": 1, "length_penalty": 1.0}
_BETWEEN = "---"  # a line between the answers to several prompts
_AT_MOST_ONE = Whole(1)


@click.command(epilog=_EXAMPLE)
@click.argument("model_folder", type=PATHLIB)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help=f"Text to continue. May be given several times: a line {_BETWEEN} is between the answers.",
)
@click.option(
    "--input",
    "input_file",
    type=PATHLIB,
    help="Instructions in any format of fine-tuning (jsonl, json, csv, parquet), with answers or without; of another "
    "suffix: one prompt per line. Writes jsonl.",
)
@click.option("--chat", is_flag=True, help="Talk in the terminal.")
@click.option("--output", type=PATHLIB, help="jsonl file for what --input asks. [default: stdout]")
@click.option("--overwrite", is_flag=True, help="Replace --output where it is there.")
@click.option("--adapter", type=PATHLIB, help="Folder of an adapter that was trained over the model.")
@click.option(
    "--chat_template",
    "--template",
    "chat_template",
    type=PATH,
    help="none: continue texts as they stand; auto: ask as in the model's training, else through the tokenizer's own, else "
    "default; a name, jinja (the tokenizer's own) or a file. [default: none for texts, auto for instructions and --chat]",
)
@click.option("--chat_template_date", metavar="YYYY-MM-DD", help="Date that a template writes which asks for today's.")
@click.option("--system", default="", help="System text before questions that go through a template and have none.")
@click.option("--data_format", default="auto", show_default=True, help="Format of --input; auto: by its keys.")
@click.option(
    "--max_new_tokens",
    type=_AT_MOST_ONE,
    help=f"Longest answer. [default: {_ROOM}; with a template {_ROOM_OF_ANSWERS}]",
)
@click.option("--batch_size", default=8, show_default=True, type=_AT_MOST_ONE, help="Prompts at a time.")
@click.option("--temperature", type=Finite(0, min_open=True), help="Sample; below 1 sharpens. [default: greedy]")
@click.option("--top_p", type=Finite(0, 1, min_open=True), help="Sample from the likeliest tokens of this mass.")
@click.option("--top_k", type=Whole(0), help="Sample from this many likeliest tokens; 0: from all.")
@click.option(
    "--repetition_penalty",
    default=1.0,
    show_default=True,
    type=Finite(0, min_open=True),
    help="Above 1: tokens that are there already become less likely.",
)
@click.option("--num_beams", default=1, show_default=True, type=_AT_MOST_ONE, help="Beams of a search; 1: none.")
@click.option(
    "--length_penalty",
    default=1.0,
    show_default=True,
    type=Finite(),
    help="Of the search: above 0 longer texts gain, below 0 they lose.",
)
@click.option("--seed", default=0, show_default=True, type=Whole(0), help="Seed of the sampling.")
@click.option("--tokenizer", type=PATHLIB, help="Folder of the tokenizer. [default: MODEL_FOLDER]")
@click.option("--allow_pickle", is_flag=True, help="Read torch's pytorch_model.bin where there are no safetensors.")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), help="[default: the best there is]")
@click.option("--static", is_flag=True, help="MODEL_FOLDER is a static export: run its program, in paddle.inference.")
def generate(
    model_folder: Path,
    prompts: tuple[str, ...],
    input_file: Path | None,
    chat: bool,
    output: Path | None,
    data_format: str,
    **options: Any,
) -> None:
    """Let the model in MODEL_FOLDER (PaddleNLP's or Hugging Face's files) continue --prompt, answer --input, or --chat.

    The likeliest token is taken at each step, unless --temperature, --top_p or --top_k asks for sampling, or --num_beams
    for a search. Under paddle.distributed.launch the ranks share the model (tensor parallel), and the first one prints.
    """
    from paddle_llm.generation.folders import check_folders
    from paddle_llm.generation.requests import Request, read_requests

    _check_options(model_folder, prompts, input_file, chat, output, options)
    model_folder = check_folders(model_folder.expanduser(), options)
    requests = [Request(text, where="--prompt") for text in prompts]
    if input_file is not None:
        requests = read_requests(input_file, data_format)
    generator, reader = _prepare(model_folder, requests, options)
    from paddle_llm.generation.eval_mode import generating  # imports paddle

    say(reader.told)
    if chat:
        from paddle_llm.generation.chat import Chat

        with generating(generator.model):
            Chat(generator, reader).run()
        return
    encoded = [reader(request) for request in requests]
    if not reader.encoder:
        for prompt in encoded:
            generator.check_room(prompt)
    _say_fitted(requests, encoded, generator)
    with generating(generator.model), _progress(len(encoded), shown=input_file is not None) as on_batch:
        answers = generator(encoded, range(len(encoded)), options["batch_size"], on_batch)
    if not is_first_rank():
        return
    if input_file is None:
        for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            if number:
                click.echo(_BETWEEN)
            click.echo(answer.text if reader.encoder else continued(request.text, answer, generator.codec))
        return
    _write(_rows(requests, encoded, answers, generator.codec, reader), output)


def _say_fitted(requests: Sequence[Request], encoded: Sequence[Prompt], generator: Generator) -> None:
    """Report what the template does not write, how many prompts were cut, and how many answers are limited by the positions."""
    from paddle_llm.data.chat.notes import sentence
    from paddle_llm.generation.texts import positions_of, with_learnt_prompt

    short = [generator.room_behind(with_learnt_prompt(prompt, generator.model)) < generator.room for prompt in encoded]
    kinds = {
        "prompts were truncated: the beginning of the question was cut off": [prompt.is_cut for prompt in encoded],
        "prompts were truncated: their oldest rounds were dropped": [prompt.dropped_rounds > 0 for prompt in encoded],
        "answers are shorter than --max_new_tokens allows": short,
    }
    for kind in dict.fromkeys(kind for prompt in encoded for kind in prompt.notes):
        those = [request.where for request, prompt in zip(requests, encoded, strict=True) if kind in prompt.notes]
        say(f"{len(those)} {sentence(kind)} (first: {those[0]})")
    for what, which in kinds.items():
        first = next((request.where for request, one in zip(requests, which, strict=True) if one), None)
        if first is not None:
            say(
                f"{sum(which)} of {len(encoded)} {what} (first: {first}). The model has {positions_of(generator.model.config)} "
                f"positions, {generator.room} are kept for an answer. Shorten the prompts, or lower --max_new_tokens."
            )


def _check_options(
    model_folder: Path,
    prompts: Sequence[str],
    input_file: Path | None,
    chat: bool,
    output: Path | None,
    options: dict[str, Any],
) -> None:
    """Raise UserError for what cannot be, before anything is loaded."""
    from paddle_llm.data.chat.jinja_templates import check_template
    from paddle_llm.generation.requests import NONE

    given = [name for name, there in (("--prompt", prompts), ("--input", input_file), ("--chat", chat)) if there]
    if len(given) != 1:
        raise UserError(f"{' and '.join(given) or 'nothing to do'}: give one of --prompt, --input and --chat")
    if output is not None and input_file is None:
        raise UserError("--output is for what --input asks")
    if output is not None and input_file is not None and output.exists() and output.resolve() == input_file.resolve():
        raise UserError(f"--output {output} is the file of --input, which would be lost. Name another file.")
    if output is not None and output.exists() and not (options["overwrite"] and output.is_file()):
        raise UserError(f"--output {output} is there: name another file, or replace it with --overwrite")
    if output is not None:
        check_writable(output, "--output")
    if options["chat_template"] not in (None, NONE):
        check_template(options["chat_template"], str(options["tokenizer"] or model_folder))
    sampled = [name for name in ("temperature", "top_p", "top_k") if options[name]]
    if options["num_beams"] > 1 and sampled:
        raise UserError(f"--num_beams {options['num_beams']} searches, --{sampled[0]} samples: keep one of them")
    if chat:
        if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
            raise UserError("--chat needs a terminal, which ranks of a launch do not have: run it in one process")
        if options["num_beams"] > 1:
            raise UserError("--chat shows words as they come, which a search cannot: leave --num_beams out")


def _prepare(folder: Path, requests: Sequence[Request], options: dict[str, Any]) -> tuple[Generator, Reader]:
    """Load the network, and find out how it is asked."""
    loaded = _load(folder, options)
    if not options["static"]:
        _report_settings(folder, options)
    from paddle_llm.generation.requests import reader_of
    from paddle_llm.generation.texts import Generator, positions_of
    from paddle_llm.parallel.mesh import current_mesh

    positions = positions_of(loaded.model.config) or 1 << 20
    asked_room = options["max_new_tokens"]
    reader = reader_of(
        requests,
        loaded.codec,
        asked_for=options["chat_template"],
        trained_with=loaded.template,
        trained=loaded.template_folder,
        date=options["chat_template_date"],
        folder=str(options["tokenizer"] or folder),
        src_length=max(positions - (asked_room or min(_ROOM_OF_ANSWERS, positions // 2)), 1),
        system=options["system"],
    )
    room = asked_room or (_ROOM if reader.encoder is None else min(_ROOM_OF_ANSWERS, positions // 2))
    names = ("temperature", "top_k", "top_p", "repetition_penalty", "num_beams", "length_penalty", "seed")
    choice = Choice(**{name: options[name] for name in names})
    ends = frozenset(loaded.end_ids) | reader.stop_ids
    tensor = None if options["static"] else current_mesh(loaded.layout).tensor
    return Generator(loaded.model, loaded.family, loaded.codec, ends, choice, room, tensor), reader


def _report_settings(folder: Path, options: dict[str, Any]) -> None:
    """Report the defaults of generation_config.json that are not applied."""
    from paddle_llm.models.configuration.generation_settings import describe_unapplied, read_generation

    given = [name for name, value in options.items() if value is not None and value != _DEFAULTS.get(name)]
    if {"temperature", "top_p", "top_k"} & set(given):
        given += ["do_sample", "decode_strategy"]
    line = describe_unapplied(read_generation(folder), given, folder)
    if line:
        say(line)


def _load(folder: Path, options: dict[str, Any]) -> Loaded:
    from paddle_llm.generation.network import load_network, open_static, start_process

    if options["static"]:
        return open_static(folder, options["tokenizer"])
    device, layout = start_process(options["device"])
    places = {name: options[name] for name in ("tokenizer", "adapter", "allow_pickle")}
    return load_network(folder, device, layout, **places)


def continued(text: str, answer: Answer, codec: Any) -> str:
    """A text and what was generated behind it.

    A tokenizer of words drops the space before the first piece it is given: it is given the text's, too.
    """
    before = codec.encode(text)
    shown = codec.decode(before)
    whole = codec.decode([*before, *answer.tokens])
    return text + (whole[len(shown) :] if whole.startswith(shown) else answer.text)


# ---- files ----------------------------------------------------------------------------------------------------------


def _rows(requests: Any, encoded: Any, answers: Any, codec: Any, reader: Reader) -> list[dict[str, Any]]:
    rows = []
    for request, prompt, answer in zip(requests, encoded, answers, strict=True):
        plain = reader.encoder is None
        row = {"prompt": request.text if plain else codec.show(prompt.ids), "generated": answer.text}
        if plain:
            row["generated"] = continued(request.text, answer, codec)[len(request.text) :]
        if request.reference is not None:
            row["reference"] = request.reference
        rows.append({**row, "where": request.where})
    return rows


def _write(rows: Sequence[dict[str, Any]], output: Path | None) -> None:
    from paddle_llm.core.atomic_output import write_atomically

    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    printed = lines if stdout_is_unicode() else "".join(json.dumps(row) + "\n" for row in rows)
    if output is None:
        sys.stdout.write(printed)
    else:
        try:
            write_atomically(output, lines.encode("utf-8", "backslashreplace"))  # a file name may hold surrogates
        except UserError as error:  # minutes of work, or hours
            sys.stdout.write(printed)
            raise UserError(f"--output {error} The answers are on stdout instead") from None
        say(f"{len(rows)} answers: {output}")
    pairs = [(row["generated"], row["reference"]) for row in rows if "reference" in row]
    if pairs:
        _show_scores(pairs, len(rows))


def _show_scores(pairs: Sequence[tuple[str, str]], count: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from paddle_llm.generation.scores import score

    say(f"{len(pairs)} of {count} answers have a reference")
    table = Table()
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in score(*zip(*pairs, strict=True)).items():
        table.add_row(name, f"{value:.2f}" if name == "bleu" else f"{value:.4f}")
    Console(stderr=True).print(table)


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Any]:
    """A bar on a terminal; elsewhere a line now and then, for long work."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not shown or not is_first_rank():
        yield None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(total)
        return
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("answers", total=total)
        yield lambda done: bar.update(task, completed=done)


def _lines(total: int, every: float = 30.0) -> Any:
    started = last = time.monotonic()

    def on_batch(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > every:
            last = now
            say(f"{done} of {total} answers, {(total - done) * (now - started) / done:.0f} s left")

    return on_batch
