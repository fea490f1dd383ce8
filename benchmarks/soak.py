"""Kill trainings at random moments with SIGKILL, start them again, and count what differs from trainings without kills.

    make soak MINUTES=30                                        # forked ranks, a new seed
    python benchmarks/soak.py --minutes 20 --launcher --seed 7  # ranks of paddle.distributed.launch

One rank or all ranks are killed: in the forward or backward pass, between micro-batches, while weights are updated, in an
evaluation, at any operation on a file of a checkpoint, while old checkpoints are removed, while a job starts or writes its
result. Half of the jobs continue on the same layout, half on a layout that is drawn for every start. The moments are counted
events, so that a seed repeats a run. Results are added to results/soak.json, from which results/soak.md is written.
Exit code 1 if there is a fault; then the folder of the job is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

from machine import describe  # noqa: E402

from tests.checkpoint.soak.campaign import Campaign, plan  # noqa: E402
from tests.checkpoint.soak.moments import PHASES  # noqa: E402

PACKAGES = ("paddle_llm", "paddlepaddle", "paddlenlp")
JSON = ROOT / "benchmarks" / "results" / "soak.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="no job starts after this time")
    parser.add_argument("--kills", type=int, default=6, help="kills of a job")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--first", type=int, default=0, help="number of the first job")
    parser.add_argument("--jobs", type=int, help="number of jobs; by default as many as the time allows")
    parser.add_argument("--launcher", action="store_true", help="start the ranks with paddle.distributed.launch")
    parser.add_argument("--results", type=Path, default=JSON, help="file to which the results are added")
    parser.add_argument("--folder", type=Path, help="where the jobs run; by default a new temporary folder")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {options.seed}, jobs in {folder}", file=sys.stderr)
    campaign = Campaign(folder, options.seed, launcher=options.launcher, report=_report)
    began, jobs = time.monotonic(), []
    while (options.jobs is None or len(jobs) < options.jobs) and time.monotonic() - began < 60 * options.minutes:
        number = options.first + len(jobs)
        result = campaign.run(number, kills=options.kills, **plan(number))
        jobs.append(asdict(result))
        _report(f"job {number}: {result}")
        _add(options.results, options, jobs, time.monotonic() - began)
    faults = [fault for job in jobs for fault in job["faults"]]
    _report(
        f"{sum(len(job['kills']) for job in jobs)} kills in {len(jobs)} jobs, {len(faults)} faults, seed {options.seed}"
    )
    return 1 if faults else 0


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _add(file: Path, options: argparse.Namespace, jobs: list[dict[str, Any]], seconds: float) -> None:
    """Write this run to the file, in place of what it wrote before, and the page with all runs."""
    runs = json.loads(file.read_text()) if file.exists() else []
    key = {"seed": options.seed, "first": options.first, "launcher": options.launcher, "process": os.getpid()}
    runs = [run for run in runs if {name: run.get(name) for name in key} != key]
    run = {
        "date": date.today().isoformat(),
        "machine": describe(*PACKAGES),
        **key,
        "seconds": round(seconds),
        "jobs": jobs,
    }
    file.write_text(json.dumps([*runs, run], indent=1) + "\n")
    file.with_suffix(".md").write_text(page([*runs, run]))


def page(runs: list[dict[str, Any]]) -> str:
    jobs = [job for run in runs for job in run["jobs"]]
    kills = [kill for job in jobs for kill in job["kills"]]
    launched = sum(len(job["kills"]) for job in jobs if job["launcher"])
    lines = [
        "# Trainings that are killed and continued",
        "",
        f"{len(kills)} kills in {len(jobs)} jobs, {launched} of them under Paddle's launcher. [soak.py](../soak.py) explains how; "
        "[testing](../../docs/contributing/testing.md) what is counted.",
        "",
        *_table(
            _by(jobs, lambda job: (job["layout"], job["method"], "drawn" if job["changes_layout"] else "the same"))
        ),
        "",
        "| moment | one rank | all ranks | with the launcher |",
        "|---|---|---|---|",
    ]
    count = Counter((kill["phase"], kill["whom"]) for kill in kills)
    lines += [
        f"| {name} | " + " | ".join(str(count[name, whom]) for whom in ("rank", "all", "launcher")) + " |"
        for name in PHASES
    ]
    lines += [
        "",
        "| date | start | seed | first job | jobs | kills | minutes | faults | machine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        faults = sum(len(job["faults"]) for job in run["jobs"])
        lines.append(
            f"| {run['date']} | {'launcher' if run['launcher'] else 'fork'} | {run['seed']} | {run['first']} | {len(run['jobs'])} | "
            f"{sum(len(job['kills']) for job in run['jobs'])} | {run['seconds'] / 60:.0f} | {faults} | {run['machine']} |"
        )
    faults = [(run["seed"], job["name"], fault) for run in runs for job in run["jobs"] for fault in job["faults"]]
    if faults:
        lines += ["", "Faults, whose jobs are not in the column of losses:", ""]
        lines += [f"- seed {seed}, job {name}: {' '.join(fault.split())[:400]}" for seed, name, fault in faults]
    lines += ["", *(f"Seed {run['seed']}, first job {run['first']}: {run['note']}" for run in runs if "note" in run)]
    return "\n".join(lines) + "\n"


def _by(jobs: Iterable[dict[str, Any]], key: Any) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for job in jobs:
        found.setdefault(key(job), []).append(job)
    return dict(sorted(found.items()))


def _table(groups: dict[tuple[str, ...], list[dict[str, Any]]]) -> list[str]:
    lines = [
        "| first layout | method | continued on | jobs | kills | checkpoints lost | differing bits | differing rows | samples lost or repeated | largest loss difference / limit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = {**groups, ("all", "", ""): [job for jobs in groups.values() for job in jobs]}
    for name, jobs in groups.items():
        same = [job for job in jobs if not job["changes_layout"]]
        moved = [job["loss_share"] for job in jobs if job["changes_layout"] and not job["faults"]]
        cells = [
            *(*name, len(jobs), sum(len(job["kills"]) for job in jobs), sum(job["lost_checkpoints"] for job in jobs)),
            *(sum(job[what] for job in same) if same else "" for what in ("differing_bits", "differing_rows")),
            f"{sum(job['wrong_samples'] for job in jobs):g}",
            f"{max(moved):.2f}" if moved else "",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
