"""Commands `paddle-llm tokenizer train`, `data build` and `data inspect`; see `instructions.py` for instruction data."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from paddle_llm.cli.instructions import InstructionOptions, finetune_options, self_cognition, show_finetune
from paddle_llm.cli.number_option import FiniteNumber, WholeNumber
from paddle_llm.cli.path_option import PATH
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.build import build_corpus
from paddle_llm.data.corpus.inspect import Inspection, inspect_corpus, raise_problems
from paddle_llm.data.corpus.sources import ReadOptions, Source, describe_bad_row, find_sources, parse_block, read_blocks
from paddle_llm.data.tokenizer import open_decoder, train_tokenizer

_FORMATS = click.Choice(["auto", "text", "jsonl", "parquet"])
_DOCUMENTS = click.Choice(["line", "blank_line", "file"])


class ManyInputs(click.Command):
    """Accepts `--input a b c`, which a shell makes of `--input *.txt`, as three inputs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat `--input` before each further value."""
        repeated, in_input = [], False
        for arg in args:
            if arg.startswith("-"):
                in_input = arg == "--input"
                repeated.append(arg)
                has_value = False
            elif in_input and has_value:
                repeated += ["--input", arg]
            else:
                repeated.append(arg)
                has_value = True
        return super().parse_args(ctx, repeated)


_READING = [
    click.option(
        "--input", "inputs", multiple=True, required=True, type=PATH, metavar="FILES...",
        help="Files, folders or globs: .txt, .md, .jsonl, .json (lines), .parquet; text and jsonl also .gz or .zst.",
    ),
    click.option("--format", "kind", type=_FORMATS, default="auto", show_default=True, help="Format of all inputs; auto: by suffix."),
    click.option("--text_key", default="text", show_default=True, help="Key (jsonl) or column (parquet) that holds the text."),
    click.option(
        "--document", type=_DOCUMENTS, default="line", show_default=True,
        help="What one document is in a text file: a line, the text between blank lines, or the whole file.",
    ),
    click.option("--skip_bad_rows", is_flag=True, help="Skip and count rows without text instead of stopping."),
    click.option("--overwrite", is_flag=True, help="Replace existing output."),
]  # fmt: skip


def _reading(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_READING):
        command = option(command)
    return command


@click.group()
def tokenizer() -> None:
    """Train a sentencepiece tokenizer on your text."""


@tokenizer.command(cls=ManyInputs)
@_reading
@click.option("--output_dir", required=True, type=PATH, help="Folder to write.")
@click.option(
    "--vocab_size",
    type=WholeNumber(min=261),
    required=True,
    help="Number of pieces, including 4 special ones and 256 bytes.",
)
@click.option(
    "--model_type",
    type=click.Choice(["unigram", "bpe"]),
    default="unigram",
    show_default=True,
    help="Algorithm of sentencepiece.",
)
@click.option(
    "--character_coverage",
    type=FiniteNumber(0.9, 1.0),
    default=0.9995,
    show_default=True,
    help="Share of the characters that get their own piece; the others are written as bytes.",
)
@click.option(
    "--max_lines",
    type=WholeNumber(min=1),
    default=1_000_000,
    show_default=True,
    help="Number of lines to train on, drawn at random.",
)
def train(
    inputs: tuple[str, ...], kind: str, text_key: str, document: str, skip_bad_rows: bool, **options: Any
) -> None:
    """Train a tokenizer and write it as a folder that PaddleNLP's AutoTokenizer can load.

    \b
    Example:
      paddle-llm tokenizer train --input my_text/ --output_dir tok --vocab_size 8000
    """
    reading = ReadOptions(document, text_key)
    sources = find_sources(list(inputs), kind)
    skipped = []

    def texts(advance: Callable[[int], None]) -> Iterator[str]:
        for block in read_blocks(sources, reading):
            for found in parse_block(block, reading):
                if found.text is not None:
                    yield found.text
                elif skip_bad_rows:
                    skipped.append(found.row)
                else:
                    raise UserError(f"{describe_bad_row(block.source, found)}. Fix the row, or use --skip_bad_rows.")
            advance(block.read_bytes)

    with progress_bar(sources, "reading") as advance:
        size = train_tokenizer(texts(advance), **options)
    if skipped:
        say(f"{counted(len(skipped), 'bad row')} skipped")
    say(f"tokenizer with {counted(size, 'piece')} written to {options['output_dir']}")


@click.group()
def data() -> None:
    """Tokenize text into a corpus; inspect a corpus or instruction data."""


@data.command(cls=ManyInputs)
@_reading
@click.option("--tokenizer", required=True, type=PATH, help="Tokenizer folder.")
@click.option(
    "--output_prefix", required=True, type=PATH, help="Writes PREFIX.bin, .idx, .meta.json and .digests.json."
)
@click.option(
    "--workers",
    type=WholeNumber(min=1),
    default=len(os.sched_getaffinity(0)),
    show_default="all cores",
    help="Number of processes that tokenize.",
)
def build(
    inputs: tuple[str, ...],
    kind: str,
    text_key: str,
    document: str,
    output_prefix: str,
    skip_bad_rows: bool,
    **options: Any,
) -> None:
    """Tokenize text into a corpus that paddlenlp.data and Megatron can read; every document ends with EOS.

    \b
    Example:
      paddle-llm data build --input 'text/**/*.jsonl.zst' --tokenizer tok --output_prefix corpus/mine --workers 8
    """
    began = time.monotonic()
    report = build_corpus(
        list(inputs),
        output_prefix=output_prefix,
        kind=kind,
        options=ReadOptions(document, text_key),
        skip_bad_rows=skip_bad_rows,
        progress=progress_bar,
        **options,
    )
    for problem in report.problems:
        say(f"skipped: {problem}")
    if report.bad_rows or report.empty_documents:
        say(f"skipped: {counted(report.bad_rows, 'bad row')}, {counted(report.empty_documents, 'empty document')}")
    if report.special_tokens:
        say(
            f"{counted(report.special_tokens, 'special token')} occur as text in the documents and became token ids, as in transformers. "
            "Remove them from the text if they must not end or begin documents."
        )
    say(
        f"{output_prefix}: {report.n_documents} documents, {report.n_tokens} tokens, "
        f"{report.n_tokens / (time.monotonic() - began):.0f} tokens/s"
    )


@data.command()
@click.argument("prefix", required=False, type=PATH)
@click.option(
    "--tokenizer", type=PATH, help="Tokenizer folder; it is compared with that of the corpus and decodes samples."
)
@click.option(
    "--samples",
    "--num",
    "samples",
    type=WholeNumber(min=0),
    default=3,
    show_default=True,
    help="Number of samples to show.",
)
@finetune_options
def inspect(prefix: str | None, tokenizer: str | None, samples: int, finetune: str | None, **options: Any) -> None:
    """Print statistics and samples of a corpus and check its index against its data; fail if they disagree.

    With --finetune: print what fine-tuning sees of instruction data, with the tokens that have a loss marked.

    \b
    Example:
      paddle-llm data inspect corpus/mine --tokenizer tok
      paddle-llm data inspect --finetune train.jsonl --tokenizer tok --chat_template llama2
    """
    if finetune is not None and prefix is None:
        show_finetune(finetune, tokenizer, samples, InstructionOptions(**options))
        return
    if prefix is None or finetune is not None:
        raise UserError("give either a corpus (PREFIX) or instruction data (--finetune FILE).")

    corpus, found = inspect_corpus(prefix, tokenizer)
    print_inspection(corpus.prefix, found)
    if samples and tokenizer:
        decode = open_decoder(tokenizer)
        step = max(corpus.n_documents // samples, 1)
        for number in range(0, corpus.n_documents, step)[:samples]:
            click.echo(f"\ndocument {number}: {decode(corpus.document(number)[:200])}")
    raise_problems(prefix, found)
    click.echo("\nindex and data agree")


data.add_command(self_cognition)


def print_inspection(prefix: str, found: Inspection) -> None:
    """Print statistics and the histogram of lengths to stdout."""
    click.echo(f"{prefix}: {found.n_documents} documents, {found.n_tokens} tokens ({found.dtype})")
    mean = found.n_tokens / found.n_documents
    click.echo(f"tokens per document: shortest {found.shortest}, mean {mean:.1f}, longest {found.longest}")
    ended = (
        "not recorded" if found.not_ended_by_eos is None else f"{found.n_documents - found.not_ended_by_eos} documents"
    )
    click.echo(f"largest token id: {found.max_token_id}; ended by EOS: {ended}")
    table = Table("tokens", "documents", "")
    most = max(count for _, _, count in found.histogram)
    for shortest, longest, count in found.histogram:
        table.add_row(f"{shortest} to {longest}", str(count), "█" * max(round(40 * count / most), 1))
    Console().print(table)


@contextmanager
def progress_bar(sources: list[Source], what: str = "tokenizing") -> Iterator[Callable[[int], None]]:
    """Show a bar over the bytes of the sources on stderr if it is a terminal.

    Yields:
        A function to call with the number of bytes just processed.
    """
    if not sys.stderr.isatty():
        yield lambda count: None
        return

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=sum(source.size for source in sources))
        yield lambda count: bar.advance(task, count)
