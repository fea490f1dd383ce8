"""Checks an export before it is published: first the contract of its target, then all engines. Prints the findings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from paddle_llm.core.console import say
from paddle_llm.export.source.source import Source
from paddle_llm.export.verification.compare import Finding
from paddle_llm.export.verification.contract import lint
from paddle_llm.export.verification.verify import (
    ENGINES,
    check_engines,
    find_paddleformers,
    uses_paddleformers,
    verify,
)


@dataclass(frozen=True)
class VerificationOptions:
    """How an export is compared with its source.

    Attributes:
        enabled: Whether it is compared.
        engines: Names of the engines; None: all.
        paddleformers_python: Python of an environment with PaddleFormers; None: not given.
    """

    enabled: bool = True
    engines: tuple[str, ...] | None = None
    paddleformers_python: str | Path | None = None

    @property
    def python(self) -> Path | None:
        """The Python of an environment with PaddleFormers."""
        return Path(self.paddleformers_python) if self.paddleformers_python else None


class ExportFailed(Exception):
    """The written export is wrong, or could not be verified, and was removed. The message says why."""


def check_options(target: str, options: VerificationOptions) -> None:
    """Check the options before anything is written, and report those without an effect.

    Raises:
        UserError: If an engine is unknown or cannot load the target, or PaddleFormers is not in its environment.
    """
    check_engines(options.engines, target)
    if options.enabled and uses_paddleformers(target, options.engines):
        find_paddleformers(options.python)
    reason = "nothing is compared (--no_verify)"
    if options.engines is not None and not options.enabled:
        say(f"--engines has no effect: {reason}")
    if options.paddleformers_python is None:
        return
    if not options.enabled:
        say(f"--paddleformers_python has no effect: {reason}")
    elif target == "static":
        say("--paddleformers_python has no effect: PaddleFormers cannot read a static program")
    elif options.engines is not None and "paddleformers" not in options.engines:
        say("--paddleformers_python has no effect: paddleformers is not among --engines")


def verify_export(source: Source, staged: Path, target: str, options: VerificationOptions) -> list[Finding]:
    """Check the target's contract, then compare with every engine.

    Returns:
        The findings; [] if nothing is compared.

    Raises:
        ExportFailed: If the contract is broken, the export differs from its source, or an engine that was named did
            not run.
    """
    say(f"checking the files against the contract of {target}")
    problems = lint(staged, target)
    if problems:
        raise ExportFailed("\n".join([f"the export breaks the contract of {target}:", *problems]))
    if not options.enabled:
        return []
    findings = verify(source, staged, target, engines=options.engines, paddleformers_python=options.python)
    failed = [finding for finding in findings if finding.passed is False]
    if failed:
        report_findings(findings)
        raise ExportFailed(_describe_failure(source, findings, failed))
    # Without --engines, an engine that is not installed is only reported.
    not_run = [finding for finding in findings if finding.passed is None and options.engines is not None]
    if not_run:
        report_findings(findings)
        raise ExportFailed(f"{not_run[0].engine} did not run (see above). Install it, or remove it from --engines.")
    return findings


def _describe_failure(source: Source, findings: list[Finding], failed: list[Finding]) -> str:
    crashed = [finding.engine for finding in failed if finding.ended]
    if len(crashed) < len(failed):
        differences = [
            f"{finding.engine}, {finding.what}{f': {finding.note}' if finding.note else ''}"
            for finding in failed
            if not finding.ended
        ]
        return "\n".join([f"the export differs from its source, {source.folder}:", *differences])
    others = [
        name
        for name in ENGINES
        if name not in crashed and any(finding.engine.startswith(f"{name} ") for finding in findings)
    ]
    without = f"exclude it with --engines {','.join(others)}" if others else "skip the comparison with --no_verify"
    return (
        f"the export could not be compared with its source, {source.folder}: {' and '.join(crashed)} ended without an answer "
        f"(see above). Fix the engine, or {without}."
    )


def report_findings(findings: list[Finding]) -> None:
    """Print one row per finding to stderr."""
    if not findings:
        return
    table = Table("engine", "compared", "tokens", "logits", "")
    for column in table.columns[1:]:
        column.no_wrap = True
    results = {True: "passed", False: "FAILED", None: "not run"}
    for finding in findings:
        difference = finding.largest_logit_difference
        table.add_row(
            finding.engine,
            finding.what,
            f"{finding.tokens_equal} of {finding.tokens}" if finding.tokens else "",
            "" if difference is None else f"{difference:.0e}",
            "ended" if finding.ended else results[finding.passed],
        )
    Console(stderr=True).print(table)
    limits = {finding.limit for finding in findings if finding.limit is not None}
    if limits:
        say(f"logits: largest difference in standard deviations of the source's logits; limit {max(limits):.0e}")
    for finding in findings:
        if finding.note:  # too long for a column
            say(f"{finding.engine}, {finding.what}: {finding.note}")
