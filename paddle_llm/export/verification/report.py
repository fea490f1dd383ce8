"""Whether an export may be published: the contract's linter, then every engine; what came of it, for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_llm.core.console import say

if TYPE_CHECKING:
    from paddle_llm.export.source.source import Source
    from paddle_llm.export.verification.compare import Finding


@dataclass(frozen=True)
class Proof:
    """How an export is compared with its source.

    Attributes:
        wanted: whether it is.
        engines: by which ones; None: all.
        python: of PaddleFormers' environment, where one is named.
    """

    wanted: bool = True
    engines: tuple[str, ...] | None = None
    python: str | Path | None = None


class ExportFailed(Exception):
    """What was written does not hold what it must, or that is not known; it has been removed. The message says why."""


def check_proof(target: str, proof: Proof) -> None:
    """Raise UserError for what would only show after all has been written; say what has no effect."""
    from paddle_llm.export.verification.verify import asks_paddleformers, check_engines, find_paddleformers

    check_engines(proof.engines, target)
    if proof.wanted and asks_paddleformers(target, proof.engines):
        find_paddleformers(Path(proof.python) if proof.python else None)
    nothing = "nothing is compared (--no_verify)"
    if proof.engines is not None and not proof.wanted:
        say(f"--engines has no effect: {nothing}")
    if proof.python is None:
        return
    if not proof.wanted:
        say(f"--paddleformers_python has no effect: {nothing}")
    elif target == "static":
        say("--paddleformers_python has no effect: PaddleFormers reads no static program")
    elif proof.engines is not None and "paddleformers" not in proof.engines:
        say("--paddleformers_python has no effect: it is not among --engines")


def prove(source: Source, staged: Path, target: str, proof: Proof) -> list[Finding]:
    """The contract's linter, then every engine's findings.

    Raises:
        ExportFailed: with every problem.
    """
    from paddle_llm.export.verification.contract import lint

    say(f"checking the files against the contract of {target}")
    problems = lint(staged, target)
    if problems:
        raise ExportFailed("\n".join([f"the export breaks the contract of {target}:", *problems]))
    if not proof.wanted:
        return []
    from paddle_llm.export.verification.verify import verify

    python = Path(proof.python) if proof.python else None
    findings = verify(source, staged, target, engines=proof.engines, paddleformers_python=python)
    failed = [one for one in findings if one.passed is False]
    absent = [one for one in findings if one.passed is None and proof.engines is not None]  # else: what is installed
    if failed or absent:
        say_findings(findings)
        raise ExportFailed(
            _why(source, findings, failed)
            if failed
            else f"--engines names {absent[0].engine}, which has not run (above)"
        )
    return findings


def _why(source: Source, findings: list[Finding], failed: list[Finding]) -> str:
    """What to say of an export that has not passed."""
    from paddle_llm.export.verification.verify import ENGINES

    ended = [finding.engine for finding in failed if finding.ended]
    if len(ended) < len(failed):
        found = [f"{one.engine}, {one.what}{f': {one.note}' if one.note else ''}" for one in failed if not one.ended]
        return "\n".join([f"the export differs from its source, {source.folder}:", *found])
    others = [
        name for name in ENGINES if name not in ended and any(one.engine.startswith(f"{name} ") for one in findings)
    ]
    without = f"--engines {','.join(others)} leaves it out" if others else "--no_verify leaves the comparison out"
    return (
        f"the export could not be compared with its source, {source.folder}, by {' and '.join(ended)}: the engine ended before it "
        f"had answered (above). Mend the engine, or go on without it: {without}"
    )


def say_findings(findings: list[Finding]) -> None:
    """One row for each engine, on stderr."""
    if not findings:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("engine", "compared", "tokens", "logits", "")
    for column in table.columns[1:]:
        column.no_wrap = True
    words = {True: "passed", False: "FAILED", None: "not run"}
    for one in findings:
        table.add_row(
            one.engine,
            one.what,
            f"{one.tokens_equal} of {one.tokens}" if one.tokens else "",
            "" if one.largest_logit_difference is None else f"{one.largest_logit_difference:.0e}",
            "ended" if one.ended else words[one.passed],
        )
    Console(stderr=True).print(table)
    limits = {one.limit for one in findings if one.limit is not None}
    if limits:
        say(f"logits: largest difference in standard deviations of the source's, at most {max(limits):.0e}")
    for one in findings:
        if one.note:  # too long for a column
            say(f"{one.engine}, {one.what}: {one.note}")
