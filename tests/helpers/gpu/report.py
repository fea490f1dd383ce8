"""Pytest plugin: `--gpu-results FILE` writes every test of the session as rows of `tests/helpers/gpu/results.py`.

Load it with `-p tests.helpers.gpu.report`, as `make test-gpu` does.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from tests.helpers.gpu import results as gpu_results

PACKAGES = ("paddlepaddle-gpu", "paddlepaddle", "paddlenlp")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-results", metavar="FILE", help="write the results of all tests to FILE as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("--gpu-results"):
        config.pluginmanager.register(Collector(Path(file)), "gpu_results")


class Collector:
    """Gathers the phases of each test and writes one row per test at the end."""

    def __init__(self, file: Path):
        self.file = file
        self._phases: dict[str, list[pytest.TestReport]] = defaultdict(list)
        self._not_collected: list[pytest.CollectReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._phases[report.nodeid].append(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._not_collected.append(report)

    def pytest_sessionfinish(self) -> None:
        machine = gpu_results.card(), gpu_results.versions(*PACKAGES)
        rows = [
            gpu_results.Result(one.nodeid, "error", 0.0, *machine, "cannot be collected", one.longreprtext)
            for one in self._not_collected
        ]
        rows += [_row(test, phases, machine) for test, phases in self._phases.items()]
        gpu_results.save(self.file, rows)


def _row(test: str, phases: list[pytest.TestReport], machine: tuple[str, str]) -> gpu_results.Result:
    seconds = sum(phase.duration for phase in phases)
    failed = [phase for phase in phases if phase.failed]
    if failed:
        result = "failed" if failed[0].when == "call" else "error"
        crash = getattr(failed[0].longrepr, "reprcrash", None)
        first = crash.message.splitlines()[0] if crash is not None and crash.message else ""
        trace = "\n".join(phase.longreprtext for phase in failed)
        return gpu_results.Result(test, result, seconds, *machine, first, trace)
    skipped = [phase for phase in phases if phase.skipped]
    if skipped:
        return gpu_results.Result(test, "skipped", seconds, *machine, _reason(skipped[0]))
    return gpu_results.Result(test, "passed", seconds, *machine)


def _reason(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return f"expected failure: {report.wasxfail}"
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")
