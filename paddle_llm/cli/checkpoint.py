"""`paddle-llm checkpoint`: list, verify and convert checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from paddle_llm.checkpoint.folder import list_checkpoints
from paddle_llm.checkpoint.summary import Summary, summaries, summary_of
from paddle_llm.cli.checkpoint_convert import convert
from paddle_llm.cli.path_option import PATHLIB
from paddle_llm.core.artifacts import MANIFEST
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError

_EXIT_DAMAGED = 1
_SIZES_ONLY = "written by version 0.2 or earlier, which recorded the sizes of files but no digests"


@click.group()
def checkpoint() -> None:
    """List, verify and convert the checkpoints of a run.

    \b
    Examples:
      paddle-llm checkpoint list output/mine
      paddle-llm checkpoint verify output/mine/checkpoint-500 --full
      paddle-llm checkpoint convert paddlenlp/checkpoint-500 output/mine/checkpoint-500 --allow_pickle
    """


checkpoint.add_command(convert)


@checkpoint.command("list")
@click.argument("output_dir", type=PATHLIB)
def list_command(output_dir: Path) -> None:
    """List the checkpoints of the run in OUTPUT_DIR: step, size, layout, and whether they are valid.

    Digests of tensors are not compared: see `paddle-llm checkpoint verify`.

    \b
    Example:
      paddle-llm checkpoint list output/mine
    """
    _check_folder(output_dir)
    found = summaries(output_dir)
    if not found:
        say(f"{output_dir} has no checkpoint.")
        return
    rows = [("step", "size", "layout", "valid"), *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for one in found:
        if one.problem is not None:
            say(one.problem)
        elif one.sizes_only:
            say(f"{one.folder} was {_SIZES_ONLY}.")


@checkpoint.command("verify")
@click.argument("folder", type=PATHLIB)
@click.option(
    "--full", is_flag=True, help="Also compare the digests of the tensors, and find weights that are not finite."
)
def verify_command(folder: Path, full: bool) -> None:
    """Verify the checkpoint FOLDER. Exit codes: 0 it is valid, 1 it is damaged.

    Without --full, this compares the set of files, their sizes, the digests of all files without tensors, and the headers
    of the files with tensors. With --full, every byte is read.

    \b
    Example:
      paddle-llm checkpoint verify output/mine/checkpoint-500 --full
    """
    _check_folder(folder)
    below = [path.name for _, path in list_checkpoints(folder)]
    if below and not (folder / MANIFEST).exists():
        raise UserError(f"{folder} is not a checkpoint. Choose one of its checkpoints: {', '.join(below)}.")
    with _progress_bar(folder, shown=full) as advance:
        found = summary_of(folder, "full" if full else "fast", advance=advance)
    if found.problem is not None:
        click.echo(found.problem)
        sys.exit(_EXIT_DAMAGED)
    compared = "sizes and digests" if full else "sizes; digests of files without tensors"
    if found.sizes_only:
        compared = f"sizes; it was {_SIZES_ONLY}"
    click.echo(f"{folder} is valid: step {found.step}, {decimal(found.nbytes)}, layout {found.layout} ({compared})")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {problem}. Name a folder.")


def _row(one: Summary) -> tuple[str, str, str, str]:
    return str(one.step), decimal(one.nbytes), str(one.layout or "-"), "yes" if one.problem is None else "no"


@contextmanager
def _progress_bar(folder: Path, *, shown: bool) -> Iterator[Callable[[int], None] | None]:
    """Show a bar over the bytes with digests on stderr if it is a terminal.

    Yields:
        Function of the number of bytes just verified; None if nothing is shown.
    """
    if not shown or not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=sum(path.stat().st_size for path in folder.glob("*.safetensors")))
        yield lambda nbytes: bar.advance(task, nbytes)
