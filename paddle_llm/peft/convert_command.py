"""`paddle-llm convert`: a LoRA adapter to and from the format of Hugging Face's PEFT."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from paddle_llm.config.console import say
from paddle_llm.config.errors import EXIT_INTERRUPTED, UserError
from paddle_llm.config.out_folder import check_apart, check_replaceable

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
    try:
        write(source, out, base=base.expanduser() if base else None, show=_progress)
    except KeyboardInterrupt:
        say(f"interrupted; OUT {out} was not written")
        sys.exit(EXIT_INTERRUPTED)
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

    check_apart(out, adapter)
    check_replaceable(out, CONFIG, "adapter", overwrite)
    if not out.exists():
        return
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
