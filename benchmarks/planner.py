"""Planned memory beside measured memory: our trainings on CPU ranks, and published tables of other frameworks.

    python benchmarks/planner.py [--tables FOLDER] [--only WORD ...] > benchmarks/results/planner.md

Our trainings are those of `planner_cases.py`; their peak is that of Paddle's host allocator over two steps, on the rank that
needs most. FOLDER has the CSV files `simumax_b200.csv`, `fms_a100_80gb.csv` and `kempnerforge_h200.csv`
(`planner_frameworks.py` describes what is assumed about each framework). A training whose measurement fails is listed as such.
`--record FILE` keeps measurements and continues from those that it has.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import planner_frameworks
from machine import describe
from planner_cases import MemoryCase, cases, measure, planned_job

from paddle_llm.planner.memory.plan import fullest_rank

Row = tuple[str, float, float]  # name, measured, planned


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=Path, help="folder of published tables")
    parser.add_argument(
        "--only", nargs="*", default=[], help="run only trainings whose names contain one of these words"
    )
    parser.add_argument("--record", type=Path, help="file of measurements, one JSON object per line")
    options = parser.parse_args()
    print(f"# Planned and measured memory\n\n{date.today()}, {describe('paddlepaddle', 'paddlenlp')}\n")
    chosen = [case for case in cases() if not options.only or any(word in case.name for word in options.only)]
    rows, failed = _measured(chosen, options.record)
    _section("Our trainings on CPU ranks", rows, "MB", 1e6)
    for name, why in failed:
        print(f"- {name}: not measured: {why}")
    if options.tables is not None:
        for title, unit, scale, found in _tables(options.tables):
            _section(title, found, unit, scale)


def _measured(chosen: list[MemoryCase], record: Path | None) -> tuple[list[Row], list[tuple[str, str]]]:
    known = {}
    if record is not None and record.exists():
        known = {row["name"]: row["ranks"] for row in map(json.loads, record.read_text().splitlines())}
    rows, failed = [], []
    for case in chosen:
        if case.name not in known:
            try:
                known[case.name] = measure(case)
            except Exception as error:
                failed.append((case.name, str(error).strip().splitlines()[-1]))
                continue
            if record is not None:
                with record.open("a") as file:
                    file.write(json.dumps({"name": case.name, "ranks": known[case.name]}) + "\n")
        peak = max(rank["peak"] for rank in known[case.name])
        rows.append((f"{case.family}: {case.name}", float(peak), float(fullest_rank(planned_job(case)).total)))
    return rows, failed


def _tables(folder: Path) -> Iterator[tuple[str, str, float, list[Row]]]:
    def read(file: str) -> list[dict[str, str]]:
        with (folder / file).open() as stream:
            return list(csv.DictReader(stream))

    def rows_of(
        rows: list[dict[str, str]], measured: str, plan: Callable[[dict[str, str]], float], names: tuple[str, ...]
    ) -> list[Row]:
        return [(" ".join(row[name] for name in names), float(row[measured]), plan(row)) for row in rows]

    names = ("model", "layers", "tp", "pp", "dp", "micro_batches")
    title = "SimuMax: Megatron-LM on B200 (model, layers, tp, pp, dp, micro-batches); nothing is fitted"
    yield title, "GiB", 1, rows_of(read("simumax_b200.csv"), "peak_alloc_gib", planner_frameworks.megatron, names)
    lora = [
        row
        for row in read("fms_a100_80gb.csv")
        if row["peft_method"] == "lora"
        and row["mem_peak_torch_mem_alloc_in_bytes"]
        and row["framework_config"].startswith(("none", "foak"))
    ]
    names = ("model_name_or_path", "num_gpus", "framework_config", "per_device_train_batch_size")
    title = "fms-acceleration: LoRA on A100 (model, GPUs, kernels, rows per GPU); one constant, fitted on one row"
    peak = "mem_peak_torch_mem_alloc_in_bytes"
    yield title, "GB", 1e9, rows_of(lora, peak, planner_frameworks.hugging_face_lora, names)
    title = "KempnerForge: FSDP2 and TP on H200 (model, GPUs, layout); one constant, fitted on one row"
    rows = rows_of(
        read("kempnerforge_h200.csv"), "memory_gb", planner_frameworks.kempnerforge, ("model", "gpus", "layout")
    )
    yield title, "GB", 1, rows


def _section(title: str, rows: list[Row], unit: str, scale: float) -> None:
    print(f"\n## {title}\n")
    if not rows:
        print("No rows.")
        return
    errors = [abs(planned / measured - 1) for _, measured, planned in rows]
    within = [sum(error <= limit for error in errors) / len(errors) for limit in (0.05, 0.10)]
    print(
        f"{len(rows)} rows: mean error {sum(errors) / len(errors):.2%}, largest {max(errors):.2%}; "
        f"within 5%: {within[0]:.0%}, within 10%: {within[1]:.0%}.\n"
    )
    print(f"| | measured, {unit} | planned, {unit} | error |\n|---|--:|--:|--:|")
    for name, measured, planned in rows:
        print(f"| {name} | {measured / scale:.2f} | {planned / scale:.2f} | {planned / measured - 1:+.2%} |")


if __name__ == "__main__":
    main()
