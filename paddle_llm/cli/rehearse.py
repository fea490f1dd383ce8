"""`paddle-llm rehearse`: shrink a config for a cluster, run it on CPU ranks and compare it with one process."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from paddle_llm.cli.number_option import WholeNumber
from paddle_llm.cli.path_option import PATH
from paddle_llm.config.reader import Resolved
from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError, was_interrupted
from paddle_llm.parallel.process.environment import prepare_host
from paddle_llm.rehearse.ranks import start_server
from paddle_llm.rehearse.rehearsal import cases_of, run_sub_layouts
from paddle_llm.rehearse.report import as_json, print_report
from paddle_llm.rehearse.shrink.config import Shrunk, read_cluster_config, shrink
from paddle_llm.rehearse.shrink.instruction_samples import own_instructions, synthetic_instructions
from paddle_llm.rehearse.shrink.samples import Samples, own_samples, sample_counts, synthetic_samples

_EXIT_NOT_EQUAL = 1
_EXIT_INTERNAL_FAILURE = 4


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG.json [--key value ...]")
@click.option("--world_size", type=WholeNumber(min=1), required=True, help="Number of ranks (GPUs) that CONFIG is for.")
@click.option(
    "--ranks", type=WholeNumber(min=1), default=8, show_default=True, help="Number of CPU ranks to run together."
)
@click.option("--steps", type=WholeNumber(min=1), default=3, show_default=True, help="Optimizer steps.")
@click.option("--synthetic", is_flag=True, help="Use random tokens instead of the config's corpus and tokenizer.")
@click.option("--json", "json_file", type=PATH, metavar="FILE", help="Also write the result as JSON.")
def rehearse(
    words: tuple[str, ...], world_size: int, ranks: int, steps: int, synthetic: bool, json_file: str | None
) -> None:
    """Rehearse a config for a cluster on the CPU of this machine.

    The config is checked as the cluster would read it, with its tokenizer and the first samples of its corpus. Then the
    model and the degrees of the layout are reduced, keeping all divisibility constraints, and trained for a few steps on
    CPU ranks: loss, gradient norm, every gradient, weight and Adam moment must equal those of one process. If --ranks is
    too small for all dimensions of the layout together, several smaller layouts are run that cover them. Any --key value
    of the config may be given, as in training.

    A config for fine-tuning is recognised by its keys. Its method is rehearsed on the instructions that it names.

    Exit codes: 0 equal, 1 not equal, 2 a mistake in the config, its data or tokenizer, 4 an internal failure of the
    rehearsal.

    \b
    Example:
      paddle-llm rehearse configs/pretrain/llama_2_70b_tp8_pp4_sharding2_stage1.json --world_size 64
      paddle-llm rehearse my.json --world_size 16 --ranks 4 --synthetic --sharding stage2
    """
    try:
        passed = _rehearse(list(words), world_size, ranks, steps, synthetic, json_file)
    except (UserError, click.ClickException, BrokenPipeError):
        raise
    except Exception as error:
        if was_interrupted(error):
            raise
        traceback.print_exc()
        sys.exit(_EXIT_INTERNAL_FAILURE)
    sys.exit(0 if passed else _EXIT_NOT_EQUAL)


def _rehearse(
    words: list[str], world_size: int, ranks: int, steps: int, synthetic: bool, json_file: str | None
) -> bool:
    began = time.monotonic()
    if json_file is not None:
        _check_writable(json_file)

    real = read_cluster_config(words, world_size)
    for line in real.notices:
        say(line)
    with tempfile.TemporaryDirectory(prefix="rehearse-") as folder, progress() as begin:
        shrunk = shrink(real, ranks, steps, Path(folder))
        _prepare()
        begin("tokenizer and corpus" if not synthetic else "random tokens")
        samples = _samples(real, shrunk, synthetic)

        results = run_sub_layouts(cases_of(shrunk, samples), begin)
    seconds = time.monotonic() - began

    print_report(shrunk, results, real.layout, seconds, Console(width=None if sys.stdout.isatty() else 120))
    if json_file is not None:
        data = "random tokens" if synthetic else real.config.input_dir or real.config.dataset_name_or_path or ""
        verdict = as_json(shrunk, results, real.layout, data, seconds)
        write_atomically(Path(json_file).expanduser(), (json.dumps(verdict, indent=1) + "\n").encode())
    return all(result.passed for result in results)


def _check_writable(json_file: str) -> None:
    """Check before the rehearsal that the file can be written, without changing it.

    Raises:
        UserError: If it cannot be written.
    """
    path = Path(json_file).expanduser()
    if not path.absolute().parent.is_dir():
        raise UserError(
            f"--json {json_file}: the folder {path.parent} does not exist. Create it, or choose another file."
        )
    existed = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise UserError(f"--json {json_file} cannot be written: {error.strerror}. Choose another file.") from error
    if not existed:
        path.unlink()


def _prepare() -> None:
    """Silence libraries, and start the server of ranks, which imports Paddle at the same time as this process."""
    if "paddle" not in sys.modules:
        prepare_host("cpu", cpu_threads=1)
    os.environ.setdefault(
        "PYTHONWARNINGS", "ignore::UserWarning"
    )  # for the server; `prepare_host` silences this process
    start_server()


def _samples(real: Resolved, shrunk: Shrunk, synthetic: bool) -> Samples:
    wanted = sample_counts(shrunk.configs)
    if real.entry == "finetune":
        small = shrunk.configs[0].config
        return (
            synthetic_instructions(shrunk.model, small, wanted)
            if synthetic
            else own_instructions(real, shrunk.model, small, wanted)
        )
    if synthetic:
        return synthetic_samples(shrunk.model, wanted, real.config.seed)
    return own_samples(real, shrunk.model, wanted)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Show on stderr what runs, and for how long.

    Yields:
        Function to call with a description of what runs next.
    """
    if not sys.stderr.isatty():
        began = time.monotonic()
        yield lambda text: say(f"{time.monotonic() - began:4.0f} s  {text}")
        return

    columns = (SpinnerColumn(finished_text="✓"), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True)) as bar:

        def finish() -> None:
            for task in bar.task_ids:
                bar.update(task, total=1, completed=1)

        def begin(text: str) -> None:
            finish()
            bar.add_task(text, total=None)

        yield begin
        finish()
