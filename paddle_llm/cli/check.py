"""`paddle-llm check`: every mistake of a config at once, and what the job would do, without Paddle."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from paddle_llm.cli.number_option import WholeNumber
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import EXIT_USER_ERROR, ConfigError, UserError
from paddle_llm.inspection.job import JobReport, check_job, translated
from paddle_llm.planner.mesh import Groups

_SHOWN_GROUPS = 4


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG.json [--key value ...]")
@click.option("--world_size", type=WholeNumber(min=1), required=True, help="Number of ranks (GPUs) of the job.")
@click.option("--nodes", type=WholeNumber(min=1), help="Number of machines.  [default: machines of 8 ranks]")
@click.option(
    "--entry", type=click.Choice(["pretrain", "finetune"]), help="Kind of the job.  [default: by the keys of CONFIG]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, also if CONFIG has mistakes.")
@click.option("--all", "all_arguments", is_flag=True, help="Also list the arguments that have their defaults.")
def check(
    words: tuple[str, ...],
    world_size: int,
    nodes: int | None,
    entry: str | None,
    as_json: bool,
    all_arguments: bool,
) -> None:
    """Check a config for a job without starting it.

    Every mistake is reported at once. A config without mistakes is described: the arguments with their origin, the ranks
    that form each group, the batch, the length of an epoch where the data can be read, and the parameters per rank.
    Paddle is not loaded. Any --key value of the config may be given, as in training.

    Exit codes: 0 no mistake, 2 at least one mistake.

    \b
    Example:
      paddle-llm check configs/pretrain/llama_2_70b_tp8_pp4.json --world_size 32
      paddle-llm check my.json --world_size 16 --nodes 2 --sharding stage2 --json
    """
    try:
        report = check_job(list(words), world_size=world_size, nodes=nodes, entry=entry)
    except UserError as error:
        if not as_json:
            raise
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        print(json.dumps({"valid": False, "problems": problems}, ensure_ascii=False, indent=1))
        sys.exit(EXIT_USER_ERROR)
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False, indent=1))
        return
    for line in report.resolved.notices:
        say(line)
    _show(report, all_arguments)


def _show(report: JobReport, all_arguments: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    sections = {
        "job": _job(report),
        "mesh": [(groups.axis, _describe(groups)) for groups in report.mesh],
        "batch": _batch(report),
        "parameters": _parameters(report),
        "arguments": _arguments(report, all_arguments),
    }
    for title, rows in sections.items():
        entries = list(rows)
        if not entries:
            continue
        console.print(Text(title, style="bold cyan"))
        width = max(len(name) for name, _ in entries)
        for name, value in entries:
            console.print(Text.assemble((f"  {name:{width}}  ", "dim"), value))
        console.print()
    console.print(Text("no mistake found", style="bold green"))


def _job(report: JobReport) -> Iterator[tuple[str, str]]:
    yield "entry", f"{report.resolved.entry} ({report.entry_note})"
    yield "layout", f"{report.resolved.layout} ({counted(report.resolved.layout.world_size, 'rank')})"
    files = {origin.removeprefix("file ") for origin in report.resolved.origins.values() if origin.startswith("file ")}
    for file in sorted(files):
        yield "file", file
    yield "machines", f"{report.nodes} with {counted(report.ranks_per_machine, 'rank')} each"


def _describe(groups: Groups) -> str:
    size, count = len(groups.groups[0]), len(groups.groups)
    shown = " ".join(_ranks(group) for group in groups.groups[:_SHOWN_GROUPS])
    more = f" and {count - _SHOWN_GROUPS} more" if count > _SHOWN_GROUPS else ""
    where = "each inside one machine" if not groups.crossing else "all across machines"
    if 0 < groups.crossing < count:
        where = f"{groups.crossing} of them across machines"
    return f"{counted(count, 'group')} of {counted(size, 'rank')}, {where}: {shown}{more}"


def _ranks(group: tuple[int, ...]) -> str:
    """Return ranks as a range with its step: 0-7, 0-24/8."""
    step = group[1] - group[0]
    return f"[{group[0]}-{group[-1]}{f'/{step}' if step > 1 else ''}]"


def _batch(report: JobReport) -> Iterator[tuple[str, str]]:
    config, layout, steps = report.resolved.config, report.resolved.layout, report.steps
    parts = f"{config.per_device_train_batch_size} x {config.gradient_accumulation_steps} x {layout.data_world_size}"
    yield "global batch", f"{counted(report.global_batch, 'row')} ({parts}: micro-batch, accumulation, data ranks)"
    at_most = (
        "" if report.resolved.entry == "pretrain" or config.pad_to_max_length or config.zero_padding else "at most "
    )
    yield "tokens per step", f"{at_most}{report.global_batch * report.row_length:,} (rows of {report.row_length:,})"
    if steps.per_epoch is not None:
        yield "steps per epoch", f"{steps.per_epoch:,.1f} ({steps.samples_per_epoch:,} {steps.note})"
    else:
        yield "steps per epoch", f"not counted: {steps.note}"
    if steps.total is not None:
        yield "steps", f"{steps.total:,}"


def _parameters(report: JobReport) -> Iterator[tuple[str, str]]:
    found = report.parameters
    if found is None:
        yield "total", f"not known: config.json of {report.resolved.config.model_name_or_path} is not on this machine"
        return
    yield "total", f"{found.total:,}"
    yield "trainable", f"{found.trainable:,} ({found.trainable / found.total:.2%})"
    for stage in found.per_rank:
        name = f"per rank of stage {stage.stage}" if len(found.per_rank) > 1 else "per rank"
        yield name, f"{stage.total:,}, trainable {stage.trainable:,}"


def _arguments(report: JobReport, all_arguments: bool) -> Iterator[tuple[str, str]]:
    resolved = report.resolved
    old_names, hidden = translated(resolved), 0
    for name, origin in resolved.origins.items():
        if origin == "default" and not all_arguments:
            hidden += 1
            continue
        asked = f"; requested: {_text(resolved.requested[name])}" if name in resolved.requested else ""
        source = f"translated from {old_names[name]}" if name in old_names else origin
        source = "file" if source.startswith("file ") else source
        yield name, f"{_text(getattr(resolved.config, name))}  ({source}{asked})"
    if hidden:
        yield "...", f"{counted(hidden, 'argument')} with the default value (--all lists them)"


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
