"""`paddle-llm convert`: a LoRA adapter to and from the format of Hugging Face's PEFT."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from paddle_llm.config.console import say
from paddle_llm.config.errors import UserError

_EXAMPLE = """\b
Examples:
  paddle-llm convert output/lora/adapter peft_adapter --to peft
  paddle-llm convert output/lora/adapter peft_adapter --to peft --base meta-llama/Llama-2-7b-hf
  paddle-llm convert downloaded_adapter adapter --to paddle-llm --base models/llama-7b
"""


@click.command(epilog=_EXAMPLE)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", "target", required=True, type=click.Choice(["peft", "paddle-llm"]), help="The format of OUT.")
@click.option(
    "--base", type=click.Path(path_type=Path), help="The model that it stands over. [default: what ADAPTER says]"
)
@click.option("--overwrite", is_flag=True, help="Replace the adapter that is at OUT.")
def convert(adapter: Path, out: Path, target: str, base: Path | None, overwrite: bool) -> None:
    """Write the LoRA adapter in ADAPTER to the folder OUT, in the format of Hugging Face's PEFT or of this library.

    Values are kept bit for bit. What one of both formats cannot express is refused with the reason. `generate`, `export`
    and fine-tuning read PEFT's format as it is, too.
    """
    adapter, out = adapter.expanduser(), out.expanduser()
    source = _find(adapter)
    _check_out(out, source, overwrite)
    _start_process()
    from paddle_llm.peft import convert as formats

    write = formats.to_peft if target == "peft" else formats.from_peft
    write(source, out, base=base.expanduser() if base else None, show=_progress)
    click.echo(out)


def _find(adapter: Path) -> Path:
    """The adapter's folder, or that of a run's output."""
    from paddle_llm.peft.peft_format import CONFIG

    if not (adapter / CONFIG).is_file() and (adapter / "adapter" / CONFIG).is_file():
        say(f"{adapter} is the output of a run: {adapter / 'adapter'} is taken")
        return adapter / "adapter"
    if not (adapter / CONFIG).is_file():
        raise UserError(f"{adapter} has no {CONFIG}: it is no adapter's folder (a run writes one to OUTPUT/adapter)")
    return adapter


def _check_out(out: Path, adapter: Path, overwrite: bool) -> None:
    from paddle_llm.peft.peft_format import CONFIG, TENSORS

    if out.resolve() == adapter.resolve() or out.resolve() in adapter.resolve().parents:
        raise UserError(f"OUT {out} is or holds what is to be converted: name another folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UserError(f"OUT {out} is there and not empty: name another folder, or replace it with --overwrite")
    if not (out / CONFIG).is_file():
        raise UserError(f"OUT {out} is no adapter (it has no {CONFIG}), and is not replaced: remove it yourself")
    more = sorted({file.name for file in out.iterdir()} - {CONFIG, TENSORS, "README.md"})
    if more:
        raise UserError(f"OUT {out} holds more than an adapter ({more[0]}), and is not replaced: name another folder")


def _start_process() -> None:
    if "paddle" in sys.modules:
        return
    from paddle_llm.parallel.host import import_paddle, prepare_host

    prepare_host("cpu")
    import_paddle()
    from paddlenlp.utils.log import logger

    logger.set_level("ERROR")


def _progress(things: Iterable[Any]) -> Iterator[Any]:
    """The same, with a bar on a terminal."""
    listed = list(things)
    if not sys.stderr.isatty():
        yield from listed
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(listed, "tensors", console=Console(stderr=True), transient=True)
