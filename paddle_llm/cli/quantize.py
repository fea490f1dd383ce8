"""`paddle-llm quantize`: write a model with quantized linear layers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paddle_llm.cli.number_option import FiniteNumber, WholeNumber
from paddle_llm.cli.path_option import PATHLIB
from paddle_llm.core.console import say
from paddle_llm.core.errors import EXIT_INTERRUPTED

_EXAMPLE = """\b
Examples:
  paddle-llm quantize models/llama-7b llama-7b-4bit --calibration train.txt
  paddle-llm quantize output/tuned llama-3bit --bits 3 --act_order --calibration train.jsonl
  paddle-llm quantize models/llama-7b llama-7b-8bit --method rtn --bits 8
"""
_AT_LEAST_ONE = WholeNumber(1)


@click.command(name="quantize", epilog=_EXAMPLE)
@click.argument("model", type=PATHLIB)
@click.argument("out", type=PATHLIB)
@click.option(
    "--method",
    type=click.Choice(["rtn", "gptq"]),
    default="gptq",
    show_default=True,
    help="rtn: round each weight to the nearest value of its grid. gptq: keep the outputs of every layer on the calibration text "
    "(Frantar et al. 2023).",
)
@click.option(
    "--bits",
    type=click.Choice(["8", "4", "3"]),
    default="4",
    show_default=True,
    help="Bits per weight.",
)
@click.option(
    "--group_size",
    type=WholeNumber(-1),
    default=128,
    show_default=True,
    help="Inputs that share a scale; -1: all inputs of an output.",
)
@click.option(
    "--symmetric/--asymmetric",
    default=True,
    show_default=True,
    help="Grid around 0, which the fast kernels of other programs need, or from the smallest to the largest weight.",
)
@click.option(
    "--calibration",
    multiple=True,
    type=PATHLIB,
    help="gptq: file with plain text, documents or rows of instructions. Repeat the option for several files of one kind.",
)
@click.option("--calibration_samples", type=_AT_LEAST_ONE, help="gptq: maximum number of samples. [default: 128]")
@click.option("--calibration_length", type=WholeNumber(2), help="gptq: tokens of a sample. [default: 512]")
@click.option(
    "--act_order", is_flag=True, help="gptq: quantize the inputs with the largest activations first (desc_act)."
)
@click.option(
    "--damping",
    type=FiniteNumber(0, min_open=True),
    default=0.01,
    show_default=True,
    help="gptq: share of the mean of the Hessian's diagonal that is added to it.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Type of the weights that are not quantized. [default: as stored]",
)
@click.option("--tokenizer", type=PATHLIB, help="Folder of the tokenizer. [default: MODEL]")
@click.option("--overwrite", is_flag=True, help="Replace an existing export at OUT.")
@click.option("--allow_pickle", is_flag=True, help="Read torch's pytorch_model.bin if there are no safetensors.")
def quantize_command(model: Path, out: Path, **options: Any) -> None:
    """Quantize the linear layers of MODEL and write the folder OUT in the GPTQ layout of Hugging Face.

    MODEL is a model folder, the output folder of a run, or a checkpoint of any layout. Embeddings, norms, biases and the head stay
    as they are. Memory holds one layer and the calibration activations. An interrupted run is continued by the same command.
    """
    from paddle_llm.export.quantized.api import QuantizeOptions, quantize
    from paddle_llm.quantization.partial import SUFFIX

    arguments = {name: options.pop(name) for name in ("tokenizer", "overwrite", "allow_pickle")}
    samples, length = options.pop("calibration_samples"), options.pop("calibration_length")
    settings = QuantizeOptions(bits=int(options.pop("bits")), samples=samples, length=length, **options)
    try:
        with _progress() as on_layer:
            done = quantize(model, out, settings, on_layer=on_layer, **arguments)
    except KeyboardInterrupt:
        say(
            f"interrupted; {out} was not written. The same command continues with the finished layers ({out.name}{SUFFIX})"
        )
        sys.exit(EXIT_INTERRUPTED)
    errors = [error for layer in done.errors for error in layer.values()]
    click.echo(
        f"{done.folder}: {settings.method}, {settings.bits} bits, {len(errors)} linear layers, mean relative error "
        f"{sum(errors) / len(errors):.2e}, {decimal(done.size)}, {done.seconds:.1f} s"
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """Print a line with the errors of each layer, above a progress bar if stderr is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda index, count, errors: say(_line(index, count, errors))
        return
    columns = (TextColumn("layers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("layers", total=None)

        def on_layer(index: int, count: int, errors: dict[str, float]) -> None:
            bar.console.print(_line(index, count, errors), highlight=False)
            bar.update(task, total=count, completed=index + 1)

        yield on_layer


def _line(index: int, count: int, errors: dict[str, float]) -> str:
    shown = ", ".join(f"{linear} {error:.1e}" for linear, error in errors.items())
    return f"layer {index + 1} of {count}: relative error {shown}"
