"""Pytest plugin: every skip belongs to a named group, each group is counted, and CI permits only what a machine may lack.

A test states what it needs with `needs(group, condition, detail)`; the mark `hf` states that it needs torch and peft.
With `CI` set in the environment the session fails if a test was skipped for any reason outside `PERMITTED_IN_CI`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from importlib.util import find_spec

import pytest

# Group -> pattern of the reasons that belong to it.
PERMITTED_IN_CI = {
    "a GPU": r"needs (\d+|a) GPUs?\b",
    "nvcc": r"\bnvcc\b",
    "PaddleFormers": r"\bPaddleFormers\b",
    "network namespaces": r"\bnetwork namespaces?\b",
}
PERMITTED_ELSEWHERE = {
    "the extra hf": r"\bextra hf\b|could not import '(torch|peft|accelerate)'",
    "chromium": r"\bchromium\b",
    "shellcheck": r"\bshellcheck\b",
    "Open MPI": r"\bOpen MPI\b",
    "the arm64 compiler and emulator": r"\barm64 compiler\b",
    "other shells": r"\bother shells\b",
}
REFERENCE_LIBRARIES = ("torch", "peft")


def group_of(reason: str, *, in_ci: bool) -> str | None:
    """Return the group that permits a skip.

    Args:
        reason: Reason of the skip, as pytest reports it.
        in_ci: Whether only the groups of CI count.

    Returns:
        Name of the group, or None if no group permits the skip.
    """
    groups = PERMITTED_IN_CI if in_ci else PERMITTED_IN_CI | PERMITTED_ELSEWHERE
    return next((name for name, pattern in groups.items() if re.search(pattern, reason)), None)


def needs(group: str, present: bool, detail: str = "") -> None:
    """Skip the calling test unless `present`.

    Args:
        group: Key of `PERMITTED_IN_CI` or `PERMITTED_ELSEWHERE`.
        present: Whether this machine has it.
        detail: What exactly is missing, for the report.
    """
    assert group in PERMITTED_IN_CI | PERMITTED_ELSEWHERE, group
    if not present:
        pytest.skip(f"needs {group}" + (f": {detail}" if detail else ""))


def in_ci() -> bool:
    return bool(os.environ.get("CI"))


class SkipReport:
    """Counts skips by group and fails the session for those without one.

    Attributes:
        groups: Number of skipped tests (of a module that was skipped as a whole: 1) per group.
        others: (test, reason) of every skip that no group permits.
    """

    def __init__(self, strict: bool):
        self.strict = strict
        self.groups: Counter[str] = Counter()
        self.others: list[tuple[str, str]] = []

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if item.get_closest_marker("hf"):
            missing = [name for name in REFERENCE_LIBRARIES if find_spec(name) is None]
            needs("the extra hf", not missing, f"{' and '.join(missing)} not installed")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._count(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._count(report)

    def _count(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        group = group_of(reason, in_ci=self.strict)
        if group is None:
            self.others.append((report.nodeid, reason))
        else:
            self.groups[group] += 1

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.strict and self.others and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        groups = PERMITTED_IN_CI if self.strict else PERMITTED_IN_CI | PERMITTED_ELSEWHERE
        terminalreporter.section("skips by what this machine lacks")
        for name in groups:
            terminalreporter.line(f"{self.groups[name]:5} needs {name}")
        terminalreporter.line(f"{len(self.others):5} for another reason" + (" (fails CI)" if self.strict else ""))
        for test, reason in self.others:
            terminalreporter.line(f"      {test}: {reason}", red=self.strict)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipReport(strict=in_ci()), "skip_report")
