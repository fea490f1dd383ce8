"""What a rehearsal prints: a table for each face, what was made small, the verdict; and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.compare import Difference
from paddle_llm.rehearse.rehearsal import Face
from paddle_llm.rehearse.shrink import Change, Shrunk

# In the order in which one causes the next, with what a difference that begins there usually means.
QUANTITIES = {
    "loss": (
        "loss",
        "The forward pass or the mean over the global batch is another: partial sums of tensor parallelism, samples in "
        "another order or used twice, or a mean per rank in place of one per token.",
    ),
    "gradient": (
        "gradient",
        "A sum in the backward pass is missing, made twice, or divided by the wrong number of ranks; or a micro batch was "
        "left out.",
    ),
    "grad_norm": (
        "gradient norm",
        "The gradients are right and their norm is not: a replica or a tied weight counted more than once, or a stage or "
        "shard not counted. Clipping then scales every step wrongly.",
    ),
    "moment1": ("first moment", "The gradient that the optimizer used is not the one that was reduced: clipping, or its owner."),
    "moment2": ("second moment", "The gradient that the optimizer used is not the one that was reduced: clipping, or its owner."),
    "weight": (
        "weight",
        "Gradients and moments are right and the weight is not: updated by another rank, not sent to all that use it, or "
        "decayed where it should not be.",
    ),
    "eval_loss": ("evaluation loss", "The training is right and its evaluation is not: samples or the mean over them."),
}  # fmt: skip
_SHOWN_LINES = 20
_MEASURE = (
    "Learning rate, schedule, epsilon and clipping are those that the limits are measured with: small steps, clipped."
)


def print_report(shrunk: Shrunk, faces: list[Face], real: Layout, seconds: float, console: Console) -> None:
    """Everything, on `console`."""
    for face in faces:
        console.print(_face_table(face) if face.verdict else f"{_title(face)}\n{_tail(face.error)}", highlight=False)
    for face in faces:
        for line in explain(face):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(_changes_table(shrunk.changes))
    for remark in shrunk.remarks:
        console.print(remark, highlight=False, markup=False, soft_wrap=True)
    console.print(verdict_line(faces, real, seconds), highlight=False, markup=False, soft_wrap=True)


def verdict_line(faces: list[Face], real: Layout, seconds: float) -> str:
    """The last line: passed or failed, what, and for how long."""
    names = ", ".join(str(face.case.layout) for face in faces)
    stands = "" if names == str(real) else f" (for {real})"
    failed = [str(face.case.layout) for face in faces if not face.passed]
    if failed:
        return f"FAILED: {', '.join(failed)}{stands}, {seconds:.0f} s"
    if names == str(Layout()):
        return (
            f"PASSED: one process trains, and repeats itself bit for bit; there is no layout to prove, {seconds:.0f} s"
        )
    compared = sum(face.verdict.compared for face in faces if face.verdict)
    return f"PASSED: {names}{stands} equals one process in {compared} comparisons, {seconds:.0f} s"


def explain(face: Face) -> list[str]:
    """Where a face's differences begin and what that usually means; [] for one that passed."""
    if face.verdict is None or face.passed:
        return []
    if not face.verdict.failures:
        return [f"{face.case.layout}: nothing was compared; the ranks recorded no step."]
    order = list(QUANTITIES)
    first = min(face.verdict.failures, key=lambda one: (one.step, order.index(one.quantity), -one.value))
    others = len(face.verdict.failures) - 1
    lines = [f"{face.case.layout}: it begins with the {_where(first)}", f"  {QUANTITIES[first.quantity][1]}"]
    factor = _as_if(first)
    if factor:
        lines.append(f"  {factor}")
    if others:
        lines.append(f"  {others} more comparisons are beyond their limits, in part as its consequence.")
    return lines


def _where(one: Difference) -> str:
    name = QUANTITIES[one.quantity][0] + (f" of {one.tensor}" if one.tensor else "")
    return f"{name}, step {one.step}, rank {one.rank}: {one.value:.1e}, allowed {one.limit:.1e}"


def _as_if(one: Difference) -> str:
    """A relative difference that only a wrong factor gives."""
    if one.quantity not in ("gradient", "grad_norm", "loss"):
        return ""
    factors = {0.5: "half its size, or one and a half times", 1.0: "nothing, or twice", 0.75: "a quarter", 3.0: "four times"}  # fmt: skip
    for value, words in factors.items():
        if abs(one.value - value) < 1e-3:
            return f"A difference of {value:g} is what {words} gives."
    return ""


def _title(face: Face) -> str:
    ranks = face.case.layout.world_size
    outcome = "equal" if face.passed else "NOT EQUAL" if face.verdict else "DID NOT RUN"
    return f"{face.case.layout}: {ranks} rank{'s' if ranks > 1 else ''}, {face.seconds:.0f} s, {outcome}"


def _face_table(face: Face) -> Table:
    assert face.verdict is not None
    table = Table("quantity", "worst", "allowed", "step", "rank", "tensor", title=_title(face), title_justify="left")
    for column in table.columns[1:5]:
        column.justify = "right"
    table.columns[5].overflow = "fold"
    for quantity, (name, _) in QUANTITIES.items():
        worst = face.verdict.worst.get(quantity)
        if worst is not None:
            style = None if worst.passed else "bold red"
            cells = (f"{worst.value:.1e}", f"{worst.limit:.1e}", str(worst.step), str(worst.rank), worst.tensor or "")
            table.add_row(name, *cells, style=style)
    return table


def _changes_table(changes: Iterable[Change]) -> Table:
    table = Table("what", "real", "rehearsed", title="What was made small", title_justify="left", caption=_MEASURE)
    table.caption_justify = "left"
    for change in changes:
        table.add_row(change.what, change.real, change.rehearsed)
    return table


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-_SHOWN_LINES:])


def as_json(shrunk: Shrunk, faces: list[Face], real: Layout, data: str, seconds: float) -> dict[str, Any]:
    """The verdict for programs."""
    return {
        "passed": all(face.passed for face in faces),
        "layout": str(real),
        "world_size": real.world_size,
        "data": data,
        "seconds": round(seconds, 1),
        "faces": [_face_json(face) for face in faces],
        "changes": [{"what": one.what, "real": one.real, "rehearsed": one.rehearsed} for one in shrunk.changes],
        "remarks": shrunk.remarks,
    }


def _face_json(face: Face) -> dict[str, Any]:
    verdict = face.verdict
    return {
        "layout": str(face.case.layout),
        "ranks": face.case.layout.world_size,
        "steps": face.case.config.max_steps,
        "passed": face.passed,
        "seconds": round(face.seconds, 1),
        "compared": verdict.compared if verdict else 0,
        "worst": {name: _difference_json(one) for name, one in verdict.worst.items()} if verdict else {},
        "failures": [_difference_json(one) for one in verdict.failures[:_SHOWN_LINES]] if verdict else [],
        "explanation": explain(face),
        "error": face.error,
    }


def _difference_json(one: Difference) -> dict[str, Any]:
    value = one.value if one.value < float("inf") else None  # JSON has no infinity; null: something is missing
    return {
        "quantity": one.quantity,
        "tensor": one.tensor,
        "step": one.step,
        "rank": one.rank,
        "value": value,
        "limit": one.limit,
    }
