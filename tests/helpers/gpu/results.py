"""Results of GPU tests: one row per test, one table, and one file to attach to an issue.

`make test-gpu` and `custom_ops/tests/gpu/run.sh` write rows as JSON; `python -m tests.helpers.gpu.results FOLDER` prints
the rows of all JSON files of a folder as one table and writes `gpu_results.md` there. Only the standard library is used:
the environment of the kernels' tests has no Paddle.
"""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter

REPORT = "gpu_results.md"
ROOT = Path(__file__).resolve().parents[3]
COLUMNS = ("test", "result", "seconds", "card", "versions")
FAILURES = ("failed", "error")
_LONGEST_TRACE = 6000  # characters; the end of a trace is more useful than its beginning


@dataclass(frozen=True)
class Result:
    """One test.

    Attributes:
        test: Name of the test.
        result: "passed", "failed", "error" (in a fixture) or "skipped".
        seconds: Wall time with fixtures.
        card: GPUs of the machine.
        versions: Packages, CUDA and driver.
        detail: Reason of a skip, or first line of a failure.
        trace: Full text of a failure.
    """

    test: str
    result: str
    seconds: float
    card: str
    versions: str
    detail: str = ""
    trace: str = ""


def card() -> str:
    """Return the GPUs of this machine, such as "8 x NVIDIA H100 80GB HBM3"."""
    names = Counter(line.split(", ")[0] for line in _nvidia_smi("name,driver_version"))
    return "; ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items()) or "no GPU"


def versions(*packages: str) -> str:
    """Return the versions of those packages that are installed, of Python and of the GPU driver."""
    found = [f"{name} {version}" for name in packages if (version := _version(name))]
    found.append(f"python {sys.version.split()[0]}")
    drivers = {line.split(", ")[-1] for line in _nvidia_smi("name,driver_version")}
    return ", ".join([*found, *(f"driver {driver}" for driver in sorted(drivers))])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _nvidia_smi(fields: str) -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def timed(test: str, run: Callable[[], str | None], of: str, packages: str) -> Result:
    """Run one test that is not pytest's.

    Args:
        run: Returns a detail for the report; raises if the test fails.
        of: Card.
        packages: Versions.
    """
    began = perf_counter()
    result, detail, trace = "passed", "", ""
    try:
        detail = run() or ""
    except Exception as error:
        result, detail, trace = "failed", _first_line(str(error)), f"{type(error).__name__}: {error}"
    return Result(test, result, perf_counter() - began, of, packages, detail, trace)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


# ---- files ----------------------------------------------------------------------------------------------------------


def save(file: Path, results: Iterable[Result]) -> None:
    """Write rows as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")


def load(folder: Path) -> list[Result]:
    """Return the rows of all JSON files of a folder, by file name."""
    return [Result(**row) for file in sorted(folder.glob("*.json")) for row in json.loads(file.read_text())]


# ---- text -----------------------------------------------------------------------------------------------------------


def table(results: Iterable[Result]) -> str:
    """Return the rows as a Markdown table with aligned columns."""
    rows = [[one.test, _shown(one), f"{one.seconds:.1f}", one.card, one.versions] for one in results]
    cells = [list(COLUMNS), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _shown(one: Result) -> str:
    return f"{one.result}: {one.detail}" if one.detail and one.result != "passed" else one.result


def counts(results: Iterable[Result]) -> str:
    """Return the number of tests by result."""
    found = Counter(one.result for one in results)
    return ", ".join(f"{number} {name}" for name, number in sorted(found.items())) or "no test was run"


def report(results: list[Result]) -> str:
    """Return the file to attach to an issue: counts, table, details of tests that passed, traces of those that did not."""
    parts = [f"# GPU tests, {datetime.date.today()}, commit {_commit()}", counts(results), table(results)]
    for one in results:
        if one.trace:
            parts += [f"## {one.test}", f"```text\n{_without_home(one.trace)[-_LONGEST_TRACE:]}\n```"]
        elif one.detail and one.result == "passed":
            parts += [f"## {one.test}", _without_home(one.detail)]
    return "\n\n".join(parts) + "\n"


def _without_home(text: str) -> str:
    return text.replace(str(ROOT), ".").replace(str(Path.home()), "~")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def main(folder: Path) -> int:
    """Print the table of a folder and write the report; 1 if a test failed or none was run."""
    results = load(folder)
    print(table(results))
    print(f"\n{counts(results)}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).write_text(report(results))
    print(f"To send these results in, attach {folder / REPORT} to an issue (docs/contributing/gpu_tests.md).")
    return int(not results or any(one.result in FAILURES for one in results))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
