"""`paddle-llm merge`: merge several LoRA adapters of one base into one adapter."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from paddle_llm.checkpoint.locate import locate_adapter, locate_base
from paddle_llm.cli.convert import check_adapter_output, show_progress
from paddle_llm.cli.number_option import WholeNumber
from paddle_llm.cli.path_option import PATH, PATHLIB
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import EXIT_INTERRUPTED, UserError
from paddle_llm.parallel.process.start import start_process
from paddle_llm.peft.adapter_files import read_checked_config
from paddle_llm.peft.hugging_face.format import is_peft
from paddle_llm.peft.merge_adapters import MergedAdapter, merge_adapters
from paddle_llm.peft.merge_terms import Addend

_EXAMPLE = """\b
Examples:
  paddle-llm merge output/law/adapter output/chat/adapter merged --weights 0.7,0.3
  paddle-llm merge law_adapter chat_adapter code_adapter merged --rank 16 --to peft
  paddle-llm merge law_adapter downloaded_adapter merged --base models/llama-7b
"""


@click.command(epilog=_EXAMPLE)
@click.argument("adapters", nargs=-1, required=True, type=PATHLIB, metavar="ADAPTER...")
@click.argument("out", type=PATHLIB)
@click.option("--weights", help="Factor of each ADAPTER, separated by commas, such as 0.7,0.3. [default: 1 for each]")
@click.option(
    "--rank",
    type=WholeNumber(min=1),
    help="Largest rank of the result, which is then an approximation. [default: the sum of the ranks, which is exact]",
)
@click.option(
    "--to",
    "target",
    type=click.Choice(["peft", "paddle-llm"], case_sensitive=False),
    help="Format of OUT. [default: that of the first ADAPTER]",
)
@click.option("--base", type=PATH, help="Base model of all adapters. [default: the one that each ADAPTER names]")
@click.option("--overwrite", is_flag=True, help="Replace an existing adapter at OUT.")
@click.option("--allow_pickle", is_flag=True, help="Read PEFT's adapter_model.bin if an ADAPTER has no safetensors.")
def merge(
    adapters: tuple[Path, ...], out: Path, weights: str | None, base: str | None, overwrite: bool, **options: Any
) -> None:
    """Write the weighted sum of LoRA adapters to the folder OUT, as one LoRA adapter.

    Each ADAPTER is in this library's format or that of Hugging Face's PEFT. Ranks, alphas and layers may differ. The
    result adds to the weights of the base exactly the weighted sum of what the adapters add. A sum that one LoRA adapter
    cannot express is refused with the reason. `export --adapter` merges the result into its base.
    """
    sources, out = [locate_adapter(adapter) for adapter in adapters], out.expanduser()
    _check_sources(sources)
    factors = _parse_weights(weights, len(sources))
    check_adapter_output(out, sources, overwrite)
    addends = [
        Addend(source, locate_base(source, base), factor) for source, factor in zip(sources, factors, strict=True)
    ]
    target = options.pop("target")
    to_peft = is_peft(read_checked_config(sources[0])) if target is None else target == "peft"
    try:
        start_process("cpu")  # a merge uses no GPU
        merged = merge_adapters(addends, out, to_peft=to_peft, show=show_progress, **options)
    except KeyboardInterrupt:
        say(f"interrupted; {out} was not written")
        sys.exit(EXIT_INTERRUPTED)
    for addend in addends:
        say(f"{addend.weight:g} x {addend.folder}")
    if merged.errors:
        _report_errors(merged)
    format = "Hugging Face's PEFT" if to_peft else "this library"
    size = decimal(sum(file.stat().st_size for file in out.rglob("*") if file.is_file()))
    ranks = sorted({merged.method.rank_of(layer) for layer in merged.layers})
    shown = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    click.echo(
        f"{out}: LoRA adapter in the format of {format}, {shown}, {counted(len(merged.layers), 'layer')}, {size}, "
        f"base model: {addends[0].base.name or 'not named'}"
    )


def _check_sources(sources: list[Path]) -> None:
    seen: dict[Path, Path] = {}
    for source in sources:
        first = seen.setdefault(source.resolve(), source)
        if first is not source:
            raise UserError(f"{source} is given twice. Give it once, with the sum of both weights.")


def _parse_weights(text: str | None, count: int) -> list[float]:
    """Return the factor of each adapter.

    Raises:
        UserError: If the text is not one finite number other than 0 for each adapter.
    """
    if text is None:
        return [1.0] * count
    words = [word.strip() for word in text.split(",")]
    try:
        factors = [float(word) for word in words]
    except ValueError:
        raise UserError(
            f"--weights {text} is not a list of numbers. Write them with commas, such as 0.7,0.3."
        ) from None
    if len(factors) != count:
        raise UserError(
            f"--weights {text} has {counted(len(factors), 'number')} for {counted(count, 'adapter')}. Write one number for each "
            "ADAPTER; the last argument is OUT."
        )
    bad = next(
        (word for word, factor in zip(words, factors, strict=True) if not math.isfinite(factor) or not factor), None
    )
    if bad is not None:
        raise UserError(
            f"--weights {text}: {bad} is not a factor. Use finite numbers other than 0, or drop the adapter."
        )
    return factors


def _report_errors(merged: MergedAdapter) -> None:
    worst = max(merged.errors, key=lambda layer: merged.errors[layer])
    mean = sum(merged.errors.values()) / len(merged.errors)
    say(
        f"--rank reduced the rank of {counted(len(merged.errors), 'layer')}: relative error of the sum {mean:.2%} on average, at "
        f"most {merged.errors[worst]:.2%} ({worst})"
    )
