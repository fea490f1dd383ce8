"""`paddle-llm convert`: convert a LoRA adapter to or from the format of Hugging Face's PEFT."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import track

from paddle_llm.checkpoint.locate import locate_adapter, locate_base
from paddle_llm.cli.path_option import PATH, PATHLIB
from paddle_llm.core.artifacts import (
    ADAPTER_CONFIG,
    ADAPTER_SAFETENSORS,
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_RECORD,
    CHAT_TEMPLATES_FOLDER,
)
from paddle_llm.core.atomic_output import check_apart, check_replaceable
from paddle_llm.core.console import say
from paddle_llm.core.errors import EXIT_INTERRUPTED, UserError
from paddle_llm.parallel.process.start import start_process
from paddle_llm.peft.hugging_face.convert import TOKENIZER_FILES, from_peft, to_peft

T = TypeVar("T")
_EXAMPLE = """\b
Examples:
  paddle-llm convert output/lora/adapter peft_adapter --to peft
  paddle-llm convert output/lora/adapter peft_adapter --to peft --base meta-llama/Llama-2-7b-hf
  paddle-llm convert downloaded_adapter adapter --to paddle-llm --base models/llama-7b
"""


@click.command(epilog=_EXAMPLE)
@click.argument("adapter", type=PATHLIB)
@click.argument("out", type=PATHLIB)
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Choice(["peft", "paddle-llm"], case_sensitive=False),
    help="Format of OUT.",
)
@click.option("--base", type=PATH, help="Base model of the adapter. [default: the one that ADAPTER names]")
@click.option("--overwrite", is_flag=True, help="Replace an existing adapter at OUT.")
@click.option("--allow_pickle", is_flag=True, help="Read PEFT's adapter_model.bin if ADAPTER has no safetensors.")
def convert(adapter: Path, out: Path, target: str, base: str | None, overwrite: bool, allow_pickle: bool) -> None:
    """Write the LoRA adapter in ADAPTER to the folder OUT, in the format of Hugging Face's PEFT or of this library.

    Values are kept bit for bit. An adapter that the other format cannot express is refused with the reason. `generate`,
    `export` and fine-tuning also read PEFT's format directly.
    """
    source, out = locate_adapter(adapter), out.expanduser()
    check_adapter_output(out, [source], overwrite)
    base_model = locate_base(source, base)
    try:
        start_process("cpu")  # a conversion uses no GPU
        if target == "peft":
            written = to_peft(source, out, base_model, show=show_progress)
        else:
            written = from_peft(source, out, base_model, show=show_progress, allow_pickle=allow_pickle)
    except KeyboardInterrupt:
        say(f"interrupted; {out} was not written")
        sys.exit(EXIT_INTERRUPTED)
    format = "Hugging Face's PEFT" if target == "peft" else "this library"
    size = decimal(sum(file.stat().st_size for file in out.iterdir()))
    click.echo(f"{out}: LoRA adapter in the format of {format}, {size}, base model: {written or 'not named'}")


def check_adapter_output(out: Path, adapters: Sequence[Path], overwrite: bool) -> None:
    """Check that a command may write an adapter to the folder `out`.

    Args:
        out: Folder to write.
        adapters: Adapters that the command reads.
        overwrite: Whether an existing adapter may be replaced.

    Raises:
        UserError: If `out` contains an input, or is a file or a folder that may not be replaced.
    """
    check_apart(out, *adapters)
    check_replaceable(out, ADAPTER_CONFIG, "adapter", overwrite)
    if not out.exists():
        return
    ours = {
        ADAPTER_CONFIG,
        ADAPTER_SAFETENSORS,
        "README.md",
        CHAT_TEMPLATE,
        CHAT_TEMPLATE_RECORD,
        CHAT_TEMPLATES_FOLDER,
        *TOKENIZER_FILES,
    }
    more = sorted({file.name for file in out.iterdir()} - ours)
    if more:
        raise UserError(f"{out} contains more than an adapter: {more[0]}. Choose another folder.")


def show_progress(items: Iterable[T]) -> Iterator[T]:
    """Yield the same items, with a progress bar on a terminal."""
    listed = list(items)
    if not sys.stderr.isatty():
        yield from listed
        return

    yield from track(listed, "tensors", console=Console(stderr=True), transient=True)
