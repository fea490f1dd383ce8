"""`paddle-llm checkpoint convert`: convert a checkpoint between PaddleNLP's formats, this library's and a model folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from paddle_llm.checkpoint.convert.command import CHECKPOINT, MODEL, UNIFIED, Converted, convert_checkpoint
from paddle_llm.checkpoint.convert.unified_files import OPTIMIZER_INDEX
from paddle_llm.cli.number_option import WholeNumber
from paddle_llm.cli.path_option import PATHLIB
from paddle_llm.core.artifacts import MANIFEST, MODEL_CONFIG
from paddle_llm.core.atomic_output import check_apart, check_replaceable
from paddle_llm.core.console import say
from paddle_llm.core.errors import EXIT_INTERRUPTED
from paddle_llm.parallel.process.start import start_process

_EXAMPLE = """\b
Examples:
  paddle-llm checkpoint convert paddlenlp/checkpoint-500 output/checkpoint-500 --allow_pickle
  paddle-llm checkpoint convert output/checkpoint-500 unified/checkpoint-500 --to unified
  paddle-llm checkpoint convert output/checkpoint-500 output/model_500 --to model
"""
# Format -> (a file that every folder of the format has, its name in messages)
_KINDS = {
    CHECKPOINT: (MANIFEST, "checkpoint"),
    UNIFIED: (OPTIMIZER_INDEX, "checkpoint"),
    MODEL: (MODEL_CONFIG, "model"),
}
_TITLES = {
    CHECKPOINT: "a checkpoint of paddle_llm",
    UNIFIED: "a unified checkpoint of PaddleNLP",
    MODEL: "a model folder",
}


@click.command(epilog=_EXAMPLE)
@click.argument("source", type=PATHLIB)
@click.argument("out", type=PATHLIB)
@click.option(
    "--to",
    "target",
    type=click.Choice(list(_TITLES), case_sensitive=False),
    help=f"Format of OUT: {'; '.join(f'{name}: {title}' for name, title in _TITLES.items())}. [default: paddle-llm for a "
    "SOURCE of PaddleNLP]",
)
@click.option("--allow_pickle", is_flag=True, help="Read PaddleNLP's pickles. Only tensors, numbers and text are read.")
@click.option(
    "--global_batch", type=WholeNumber(min=1), help="Samples per step, if SOURCE does not show it (consumed_samples)."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing folder OUT of the same format.")
def convert(
    source: Path, out: Path, target: str | None, allow_pickle: bool, global_batch: int | None, overwrite: bool
) -> None:
    """Convert the checkpoint in SOURCE and write it to the folder OUT.

    SOURCE is a checkpoint of this library, or of PaddleNLP's Trainer in any of its formats: files of single ranks, unified,
    or sharding-io. Weights, master weights and optimizer states keep every bit, and training continues from the result on any
    layout. One tensor at a time is in memory.
    """
    out = out.expanduser()
    check_apart(out, source)
    marker, kind = _KINDS[target or CHECKPOINT]
    check_replaceable(out, marker, kind, overwrite)
    try:
        start_process("cpu")  # a conversion uses no GPU
        done = convert_checkpoint(
            source, out, target=target, show=_progress, allow_pickle=allow_pickle, global_batch=global_batch
        )
    except KeyboardInterrupt:
        say(f"interrupted; {out} was not written")
        sys.exit(EXIT_INTERRUPTED)
    _report(done, out)


def _report(done: Converted, out: Path) -> None:
    source = done.source
    for name, why in source.dropped.items():
        say(f"{source.folder / name} is not converted: {why}")
    if done.target == CHECKPOINT:
        say(
            f"{out}: data and settings are not recorded, so a resume does not compare them. It continues with sample "
            f"{source.step * done.global_batch} of this library's order"
        )
    size = decimal(sum(file.stat().st_size for file in out.rglob("*") if file.is_file()))
    click.echo(f"{out}: {_TITLES[done.target]}, step {source.step}, {size}, from {source.title} ({source.layout})")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; yield the function that advances it."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    columns = (TextColumn("tensors"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("tensors", total=total)
        yield lambda count: bar.advance(task, count)
