"""Every layout and option beside one process: the whole matrix of tests/rehearse/matrix.py through the oracle, on CPU ranks.

    python benchmarks/parity.py [--only SUBSTRING ...] [--list] > benchmarks/results/parity.md      (make parity)

A row's name must contain all that `--only` gives. Failures are told on stderr as they happen; a run that is interrupted
prints the table of what it has proven. Exit code 1 when anything failed or was interrupted.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from machine import describe
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from paddle_llm.rehearse.compare import FACTOR, FIRST_STEP_LIMITS, QUANTITIES  # noqa: E402
from paddle_llm.rehearse.oracle import Verdict  # noqa: E402
from paddle_llm.rehearse.ranks import RankError  # noqa: E402
from tests.rehearse.cases import SETTINGS  # noqa: E402
from tests.rehearse.finetune_matrix import build_finetune_matrix  # noqa: E402
from tests.rehearse.matrix import Matrix, build_matrix  # noqa: E402
from tests.rehearse.options import RowChecker, layout_of, options_of  # noqa: E402
from tests.rehearse.proving import Prover, margin  # noqa: E402

COLUMNS = ("loss", "grad_norm", "gradient", "weight", "moment1", "moment2", "eval_loss")
assert set(COLUMNS) == set(QUANTITIES)


@dataclass
class Proof:
    """One row of the table; `error` in place of a verdict when the layout did not run to its end."""

    name: str
    verdict: Verdict | None
    error: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict is not None and self.verdict.passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="SUBSTRING", help="rows whose names contain all of these"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the rows and end")
    parser.add_argument("--timeout", type=float, default=180, help="seconds for each run of a row")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        checker = RowChecker(Path(folder))
        matrix = build_matrix(checker) | build_finetune_matrix(checker)
        names = [name for name in matrix.rows if all(part in name for part in arguments.only)]
        if arguments.list:
            print("\n".join(names))
            return 0
        if not names:
            print(f"no row's name contains {' and '.join(arguments.only)}; --list shows them", file=sys.stderr)
            return 1
        began = time.monotonic()
        proofs: list[Proof] = []
        try:
            prove_all(matrix, names, Path(folder), arguments.timeout, proofs)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
        print_page(matrix, names, proofs, time.monotonic() - began)
        return 0 if len(proofs) == len(names) and all(proof.passed for proof in proofs) else 1


def prove_all(matrix: Matrix, names: list[str], folder: Path, timeout: float, proofs: list[Proof]) -> None:
    """Fill `proofs`, with progress on stderr."""
    prover = Prover(timeout)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(names))
        for number, name in enumerate(names, 1):
            progress.update(task, description=name[:60])
            proof = prove_one(prover, matrix, name, folder)
            proofs.append(proof)
            if not proof.passed or not console.is_terminal:
                console.print(f"{number}/{len(names)} {told(proof)}", markup=False, highlight=False, soft_wrap=True)
            progress.advance(task)


def prove_one(prover: Prover, matrix: Matrix, name: str, folder: Path) -> Proof:
    try:
        return Proof(name, prover(matrix.case(name, folder)))
    except (RankError, RuntimeError) as error:  # the layout's ranks, or what its reference did not record
        return Proof(name, None, str(error))


def told(proof: Proof) -> str:
    """A line for the terminal; more where it failed."""
    if proof.verdict is None:
        return f"FAILED {proof.name}\n{proof.error}"
    if proof.passed:
        return f"passed {proof.name} ({margin(proof.verdict):.0%} of a limit, {proof.verdict.seconds:.1f} s)"
    failures = proof.verdict.failures
    lines = [f"  {difference}" for difference in failures[:8]]
    return "\n".join([f"FAILED {proof.name}: {len(failures)} of {proof.verdict.compared}", *lines])


# --- the page ----------------------------------------------------------------------------------------------------


def print_page(matrix: Matrix, names: list[str], proofs: list[Proof], seconds: float) -> None:
    failed = [proof for proof in proofs if not proof.passed]
    comparisons = sum(proof.verdict.compared for proof in proofs if proof.verdict)
    print(f"# Every layout beside one process, {date.today()}\n")
    print(describe("paddlepaddle", "paddlenlp", "numpy") + f", {platform.system()} {platform.release()}, gloo\n")
    print(f"{len(proofs)} of {len(matrix.rows)} rows, {comparisons} comparisons, {len(failed)} rows failed; ", end="")
    print(f"{seconds / 60:.0f} minutes. Not run: {len(names) - len(proofs)}.\n")
    print(explanation())
    print(f"| layout | options | ranks | {' | '.join(COLUMNS)} | of its limit | s |")
    print("|---|---|" + "---|" * (len(COLUMNS) + 3))
    for proof in proofs:
        print(table_row(matrix, proof))
    for proof in failed:
        print(f"\n## FAILED: {proof.name}\n\n```\n{told(proof)}\n```")
    print_worst(proofs)
    print_rejected(matrix)


def explanation() -> str:
    limits = ", ".join(f"{name} {limit:.0e}" for name, limit in FIRST_STEP_LIMITS.items())
    return (
        f"float32, {SETTINGS['max_steps']} steps, learning rate {SETTINGS['learning_rate']:g}, Adam's epsilon "
        f"{SETTINGS['adam_epsilon']:g}, gradients clipped to 0.05 unless a row says otherwise. Differences are relative "
        "(a tensor's: Frobenius norms), the largest over all steps, tensors and ranks. Allowed on the first step: "
        f"{limits}; later the same or {FACTOR} times what rounding alone does between two one-process runs. `of its limit`: the "
        "largest share of what is allowed. Seconds are those of the layout's run, its start included. Rows of fine-tuning train "
        "on instructions of unequal lengths, whose answers bear loss, so that no two micro batches or ranks have as many labels.\n"
    )


def table_row(matrix: Matrix, proof: Proof) -> str:
    row = matrix.rows[proof.name]
    layout = layout_of(row)
    cells = [str(layout), options_of(row) or "plain", str(layout.world_size)]
    if proof.verdict is None:
        cells += ["did not run"] + [""] * (len(COLUMNS) + 1)
    else:
        worst = proof.verdict.worst
        cells += [f"{worst[name].value:.0e}" if name in worst else "" for name in COLUMNS]
        share = f"{margin(proof.verdict):.0%}"
        cells += [share if proof.passed else f"**{share}**", f"{proof.verdict.seconds:.0f}"]
    return f"| {' | '.join(cells)} |"


def print_worst(proofs: list[Proof]) -> None:
    print("\n## The largest difference of each quantity\n")
    for name in COLUMNS:
        found = [(p.verdict.worst[name], p.name) for p in proofs if p.verdict and name in p.verdict.worst]
        if found:
            worst, where = max(found, key=lambda pair: pair[0].value)
            print(f"- {worst} ({where})")


def print_rejected(matrix: Matrix) -> None:
    print("\n## Rejected by the rules of the configuration\n")
    for name, why in matrix.rejected.items():
        print(f"- {name}: {first_line(why)}")
    print("\nPairs of values that no row has:\n")
    groups: dict[str, list[str]] = {}
    for pair, why in matrix.forbidden.items():
        groups.setdefault(first_line(why), []).append(" with ".join(f"{name} {value}" for name, value in pair))
    for why, pairs in groups.items():
        print(f"- {'; '.join(pairs)}: {why}")


def first_line(why: str) -> str:
    """The reader's first problem, without its number and the layouts that it offers instead."""
    lines = [line.strip() for line in why.splitlines()]
    line = next((line.split(". ", 1)[1] for line in lines if line.startswith("1. ")), lines[0])
    return line.removesuffix(" Nearest:")


if __name__ == "__main__":
    sys.exit(main())
