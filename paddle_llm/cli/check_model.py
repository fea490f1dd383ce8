"""`paddle-llm check-model`: report how a folder is read, and whether transformers agrees."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from paddle_llm.cli.path_option import PATHLIB
from paddle_llm.core.counts import counted
from paddle_llm.inspection.report import Report

_STYLES = {
    "agrees": ("✓", "green"),
    "note": ("•", "yellow"),
    "not compared": ("–", "dim"),
    "differs": ("✗", "bold red"),
    "refused": ("✗", "bold red"),
}
_MAX_ENTRIES = 12  # of a list


@click.command("check-model")
@click.argument("folder", type=PATHLIB)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quick", is_flag=True, help="Only read the files: no comparison with the network or with transformers.")
@click.option("--compare", "networks", is_flag=True, help="Compare logits with transformers on torch (small models).")
@click.option("--allow_pickle", is_flag=True, help="Also read torch's pickles.")
def check_model(folder: Path, as_json: bool, quick: bool, networks: bool, allow_pickle: bool) -> None:
    """Report how a model, tokenizer or adapter folder is read.

    Parts that will be ignored or refused are listed with the reason. The configuration, the tokenizer and the chat template
    are compared with transformers. Exit codes: 0 no problem, 1 a comparison failed, 2 a part of the folder is refused.

    \b
    Example:
      paddle-llm check-model models/Qwen2-0.5B
      paddle-llm check-model output/mine --json
    """
    if quick and networks:
        raise click.UsageError("--quick with --compare: --quick does not compare. Drop one of them.")
    warnings.simplefilter("ignore")  # of the libraries that read the folder
    from paddle_llm.inspection.inspect import inspect_folder

    report = inspect_folder(folder.expanduser(), quick=quick, networks=networks, allow_pickle=allow_pickle)
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False, indent=2))
    else:
        _show(report)
    sys.exit(report.exit_code)


def _show(report: Report) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for section in report.sections:
        console.print(Text(section.title, style="bold cyan"))
        width = max((len(name) for name in section.facts), default=0)
        for name, value in section.facts.items():
            for number, line in enumerate(_lines(name, value)):
                console.print(Text.assemble((f"  {name if number == 0 else '':{width}}  ", "dim"), line))
        for finding in section.findings:
            sign, style = _STYLES[finding.level.value]
            first, *more = finding.text.splitlines() or [""]
            console.print(Text.assemble((f"  {sign} {finding.level.value}: ", style), first))
            for line in more:
                console.print(Text(f"      {line}"))
        console.print()
    partly = any(finding.level.value == "not compared" for section in report.sections for finding in section.findings)
    nothing = "no problem found in what was compared" if partly else "no problem found"
    verdict = {0: nothing, 1: "a comparison failed", 2: "a part of this folder is refused"}[report.exit_code]
    console.print(Text(f"{report.folder}: {verdict}", style="bold green" if report.exit_code == 0 else "bold red"))


def _lines(name: str, value: Any) -> Iterator[str]:
    """Yield the lines that show a fact."""
    if name == "sample ids":
        yield counted(len(value), "token")
    elif name == "sample":
        yield from value.split("\n")
    else:
        yield _text(value)


def _text(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict) and set(value) == {"id", "token"}:
        return f"{value['id']} {value['token']}"
    if isinstance(value, dict):
        entries = [f"{key} {one}" for key, one in value.items()]
    elif isinstance(value, list):
        entries = [_text(one) if isinstance(one, dict) else str(one) for one in value]
    else:
        return str(value)
    more = f" and {len(entries) - _MAX_ENTRIES} more" if len(entries) > _MAX_ENTRIES else ""
    return ", ".join(entries[:_MAX_ENTRIES]) + more
