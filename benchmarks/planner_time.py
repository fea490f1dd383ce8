"""Estimated step times beside measured ones of other people's trainings.

    python benchmarks/planner_time.py --data FOLDER [--fit] > benchmarks/results/planner_time.md

FOLDER contains vtrain_single.csv and vtrain_multi.csv (VIA-Research/vTrain, A100-80G) and simumax_b200.csv
(MooreThreads/SimuMax). The figures of two papers are in planner_published.py. Errors are those of the constants in
planner/time/machine.py. `--fit` fits the constants again: four for A100 to every tenth row of the two tables of vTrain, one
for B200 to the first row of SimuMax's. No other row and no paper is used for fitting.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import numpy as np
from planner_published import korthikanti, narayanan, simumax, vtrain

from paddle_llm.planner.gpus import find_gpu
from paddle_llm.planner.job import Job
from paddle_llm.planner.time.machine import FITTED, MEGATRON, Efficiency, Machine
from paddle_llm.planner.time.step import step_time

Row = tuple[list[Job], float]
EVERY = 10  # one row in ten is used for fitting
LARGEST = {"peak": 1.0, "bandwidth": 1.0, "link": 0.77}  # NCCL moves about 230 of 300 GB/s on 8 A100


def errors(rows: Iterable[Row], gpu: str, efficiency: Efficiency) -> np.ndarray:
    """Relative error of each row. If a row does not state the micro-batch, the fastest job counts."""
    machine = Machine(find_gpu(gpu), efficiency, MEGATRON)
    return np.array([min(step_time(job, machine).seconds for job in jobs) / seconds - 1 for jobs, seconds in rows])


def fit(tables: list[list[Row]], gpu: str, start: Efficiency, names: tuple[str, ...]) -> Efficiency:
    """The constants with the smallest mean error, as the mean of the tables, found one constant at a time."""

    def mean_error(efficiency: Efficiency) -> float:
        return float(np.mean([np.abs(errors(rows, gpu, efficiency)).mean() for rows in tables]))

    best, error = start, mean_error(start)
    for factor in (1.1, 1.03, 1.01):
        improved = True
        while improved:
            improved = False
            for name in names:
                for change in (factor, 1 / factor):
                    other = replace(best, **{name: getattr(best, name) * change})
                    if getattr(other, name) > LARGEST.get(name, 1.0):
                        continue
                    found = mean_error(other)
                    if found < error - 1e-5:
                        best, error, improved = other, found, True
            print(f"{gpu}: {best}, mean error {error:.2%}", file=sys.stderr, flush=True)
    return best


def fitted(tables: dict[str, tuple[str, list[Row]]]) -> dict[str, Efficiency]:
    """The constants of each device, fitted to the rows that the module's docstring names."""
    samples = [rows[::EVERY] for name, (_, rows) in tables.items() if name.startswith("vTrain")]
    a100 = fit(samples, "a100-80g", FITTED["a100-80g"], ("peak", "launch", "bandwidth", "link"))
    first = tables["SimuMax, B200"][1][:1]
    return {"a100-80g": a100, "b200": fit([first], "b200", replace(a100, peak=FITTED["b200"].peak), ("peak",))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--fit", action="store_true", help="fit the constants first, and report those")
    options = parser.parse_args()
    files: dict[str, tuple[str, Callable[[Path], Iterable[Row]], str]] = {
        "vTrain, one machine": ("a100-80g", vtrain, "vtrain_single.csv"),
        "vTrain, many machines": ("a100-80g", vtrain, "vtrain_multi.csv"),
        "SimuMax, B200": ("b200", simumax, "simumax_b200.csv"),
    }
    tables = {name: (gpu, list(read(options.data / file))) for name, (gpu, read, file) in files.items()}
    tables["Narayanan 2021, table 1"] = ("a100-80g", list(narayanan()))
    tables["Korthikanti 2022, table 5"] = ("a100-80g", list(korthikanti()))
    report(tables, fitted(tables) if options.fit else FITTED)


def report(tables: dict[str, tuple[str, list[Row]]], constants: dict[str, Efficiency]) -> None:
    """Print the page."""
    print(f"# Estimated step times beside measured ones, {date.today()}\n")
    print(
        "Step times of trainings of others with Megatron-LM (benchmarks/planner_published.py) beside the estimate of "
        "`paddle_llm/planner/time`. The constants of A100 are fitted to every tenth row of the two tables of vTrain, the peak "
        "of B200 to one row of SimuMax; B200 has the other three of A100. The rows of the papers are not used for fitting. "
        "vTrain's tables do not state the recompute: it is taken as full. Narayanan et al. do not state the micro-batch and "
        "the virtual stages: the fastest ones count. The constants that all machines share (start of a kernel, of a wave of tiles "
        "and of a collective) were chosen by hand with these tables in view. Nothing was measured with this library.\n"
    )
    print("| table | rows | mean absolute error | largest | within 5% | within 10% | mean error |")
    print("|---|---|---|---|---|---|---|")
    for name, (gpu, rows) in tables.items():
        found = errors(rows, gpu, constants[gpu])
        size = np.abs(found)
        shares = " | ".join(f"{(size <= limit).mean():.0%}" for limit in (0.05, 0.1))
        print(f"| {name} | {len(rows)} | {size.mean():.1%} | {size.max():.1%} | {shares} | {found.mean():+.1%} |")
    print("\n| device | share of the peak | launch of a kernel | share of the memory bandwidth | share of a link |")
    print("|---|---|---|---|---|")
    for gpu, efficiency in constants.items():
        peak, launch, bandwidth, link = asdict(efficiency).values()
        print(f"| {gpu} | {peak:.3f} | {launch * 1e6:.1f} us | {bandwidth:.3f} | {link:.3f} |")


if __name__ == "__main__":
    main()
