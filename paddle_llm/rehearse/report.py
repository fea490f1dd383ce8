"""The report of a rehearsal: a table per sub-layout, differences from the config, the verdict; also as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from paddle_llm.config.layout import Layout
from paddle_llm.core.counts import counted
from paddle_llm.rehearse.compare import Difference
from paddle_llm.rehearse.rehearsal import SubLayoutResult
from paddle_llm.rehearse.shrink.changes import Change
from paddle_llm.rehearse.shrink.config import Shrunk

# Title of each quantity, and the usual cause if the first difference is in it. A quantity depends on those before it.
QUANTITIES = {
    "loss": (
        "loss",
        "The forward pass or the mean over the global batch differs: partial sums of tensor parallelism, samples in another "
        "order or used twice, or a mean per rank instead of one per token.",
    ),
    "gradient": (
        "gradient",
        "A sum in the backward pass is missing, added twice or divided by the wrong number of ranks, or a micro-batch is "
        "missing.",
    ),
    "grad_norm": (
        "gradient norm",
        "The gradients are correct and their norm is not: a replica or a tied weight is counted more than once, or a stage or "
        "shard is not counted. Clipping then scales every step wrongly.",
    ),
    "moment1": ("first moment", "The optimizer used another gradient than the reduced one. Check clipping and the owner of the parameter."),
    "moment2": ("second moment", "The optimizer used another gradient than the reduced one. Check clipping and the owner of the parameter."),
    "weight": (
        "weight",
        "Gradients and moments are correct and the weight is not: it was updated by another rank, not sent to all ranks that "
        "use it, or decayed by mistake.",
    ),
    "eval_loss": ("evaluation loss", "The training is correct and its evaluation is not. Check its samples and the mean over them."),
}  # fmt: skip
_MAX_SHOWN = 20
_MEASURE = "The limits hold for this learning rate, schedule, epsilon and clipping: small steps, always clipped."


def print_report(
    shrunk: Shrunk, results: list[SubLayoutResult], real: Layout, seconds: float, console: Console
) -> None:
    """Print the whole report.

    Args:
        shrunk: The rehearsed configs.
        results: Results of the sub-layouts.
        real: Layout of the config.
        seconds: Time of the rehearsal.
        console: Console to print on.
    """
    for result in results:
        console.print(
            _result_table(result) if result.verdict else f"{_title(result)}\n{_tail(result.error)}", highlight=False
        )
    for result in results:
        for line in explain(result):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(_changes_table(shrunk.changes))
    for remark in shrunk.remarks:
        console.print(remark, highlight=False, markup=False, soft_wrap=True)
    console.print(verdict_line(results, real, seconds), highlight=False, markup=False, soft_wrap=True)


def verdict_line(results: list[SubLayoutResult], real: Layout, seconds: float) -> str:
    """Return the last line: whether the rehearsal passed, with the layouts and the time."""
    names = ", ".join(str(result.case.layout) for result in results)
    original = "" if names == str(real) else f" (for {real})"
    failed = [str(result.case.layout) for result in results if not result.passed]
    if failed:
        return f"FAILED: {', '.join(failed)}{original}, {seconds:.0f} s"
    if names == str(Layout()):
        return (
            f"PASSED: training in one process is repeatable bit for bit; there is no layout to compare, {seconds:.0f} s"
        )
    compared = sum(result.verdict.compared for result in results if result.verdict)
    return f"PASSED: {names}{original} equals one process in {compared} comparisons, {seconds:.0f} s"


def explain(result: SubLayoutResult) -> list[str]:
    """Return lines about the first difference of a result and its usual cause; [] if it passed."""
    if result.verdict is None or result.passed:
        return []
    if not result.verdict.failures:
        return [f"{result.case.layout}: nothing was compared; the ranks recorded no step."]
    order = list(QUANTITIES)
    first = min(result.verdict.failures, key=lambda one: (one.step, order.index(one.quantity), -one.value))
    others = len(result.verdict.failures) - 1
    lines = [
        f"{result.case.layout}: the first difference is in the {_where(first)}",
        f"  {QUANTITIES[first.quantity][1]}",
    ]
    factor = _wrong_factor(first)
    if factor:
        lines.append(f"  {factor}")
    if others:
        lines.append(f"  {counted(others, 'more comparison')} exceeded the limit, usually as a consequence.")
    return lines


def _where(one: Difference) -> str:
    name = QUANTITIES[one.quantity][0] + (f" of {one.tensor}" if one.tensor else "")
    return f"{name}, step {one.step}, rank {one.rank}: {one.value:.1e}, allowed {one.limit:.1e}"


def _wrong_factor(one: Difference) -> str:
    """Return a sentence about the wrong factor that causes such a relative difference; "" for any other difference."""
    if one.quantity not in ("gradient", "grad_norm", "loss"):
        return ""
    values = {
        0.5: "half or 1.5 times the expected value",
        1.0: "zero or twice the expected value",
        0.75: "a quarter of the expected value",
        3.0: "four times the expected value",
    }
    for value, words in values.items():
        if abs(one.value - value) < 1e-3:
            return f"A difference of {value:g} means {words}."
    return ""


def _title(result: SubLayoutResult) -> str:
    ranks = result.case.layout.world_size
    outcome = "equal" if result.passed else "NOT EQUAL" if result.verdict else "DID NOT RUN"
    return f"{result.case.layout}: {counted(ranks, 'rank')}, {result.seconds:.0f} s, {outcome}"


def _result_table(result: SubLayoutResult) -> Table:
    assert result.verdict is not None
    table = Table("quantity", "worst", "allowed", "step", "rank", "tensor", title=_title(result), title_justify="left")
    for column in table.columns[1:5]:
        column.justify = "right"
    table.columns[5].overflow = "fold"
    for quantity, (name, _) in QUANTITIES.items():
        worst = result.verdict.worst.get(quantity)
        if worst is not None:
            style = None if worst.passed else "bold red"
            cells = (f"{worst.value:.1e}", f"{worst.limit:.1e}", str(worst.step), str(worst.rank), worst.tensor or "")
            table.add_row(name, *cells, style=style)
    return table


def _changes_table(changes: Iterable[Change]) -> Table:
    table = Table(
        "setting", "real", "rehearsed", title="Differences from the config", title_justify="left", caption=_MEASURE
    )
    table.caption_justify = "left"
    for change in changes:
        table.add_row(change.what, change.real, change.rehearsed)
    return table


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-_MAX_SHOWN:])


def as_json(shrunk: Shrunk, results: list[SubLayoutResult], real: Layout, data: str, seconds: float) -> dict[str, Any]:
    """Return the report as JSON values.

    Args:
        shrunk: The rehearsed configs.
        results: Results of the sub-layouts.
        real: Layout of the config.
        data: Name of the data.
        seconds: Time of the rehearsal.
    """
    return {
        "passed": all(result.passed for result in results),
        "layout": str(real),
        "world_size": real.world_size,
        "data": data,
        "seconds": round(seconds, 1),
        "faces": [_result_json(result) for result in results],
        "changes": [{"what": one.what, "real": one.real, "rehearsed": one.rehearsed} for one in shrunk.changes],
        "remarks": shrunk.remarks,
    }


def _result_json(result: SubLayoutResult) -> dict[str, Any]:
    verdict = result.verdict
    return {
        "layout": str(result.case.layout),
        "ranks": result.case.layout.world_size,
        "steps": result.case.config.max_steps,
        "passed": result.passed,
        "seconds": round(result.seconds, 1),
        "compared": verdict.compared if verdict else 0,
        "worst": {name: _difference_json(one) for name, one in verdict.worst.items()} if verdict else {},
        "failures": [_difference_json(one) for one in verdict.failures[:_MAX_SHOWN]] if verdict else [],
        "explanation": explain(result),
        "error": result.error,
    }


def _difference_json(one: Difference) -> dict[str, Any]:
    value = one.value if one.value < float("inf") else None  # JSON has no infinity; null means that a value is missing
    return {
        "quantity": one.quantity,
        "tensor": one.tensor,
        "step": one.step,
        "rank": one.rank,
        "value": value,
        "limit": one.limit,
    }
