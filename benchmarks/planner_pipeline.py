"""Step times of our own pipelines on CPU ranks beside those of the event simulation.

    python benchmarks/planner_pipeline.py [--rounds 3] [--steps 6] > benchmarks/results/planner_pipeline.md

LLaMA of hidden 128 and 24 layers through the real trainer over gloo, float32, one thread per rank. One process with 12 and
with 24 layers gives the time of a layer, of embedding and head, and of the update. The simulation predicts pipelines of 2 to 4
ranks from these four numbers. Ranks beyond the number of cores share them. The table compares step times as ratios to one
process with the same micro-batches; transfers are not predicted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
from machine import describe
from sharding_stage2 import VOCABULARY, step_seconds

from paddle_llm.config.layout import Layout
from paddle_llm.planner.pipeline.events import ChunkTimes, Timeline, events_of
from paddle_llm.planner.pipeline.schedules import PipelineSchedule, build_schedule
from paddle_llm.rehearse.ranks import run_ranks

LAYERS = 24
FORWARD_SHARE = 1 / 3  # of a forward and a backward pass
# Paddle needs 2 micro-batches per rank and at least 3 ranks for virtual stages.
CASES = [(p, 1, m) for p in (2, 3, 4) for m in (1, 2, 4, 8)] + [(3, 2, 6), (3, 2, 8), (4, 2, 8)]


def run_on_cores(schedule: PipelineSchedule, times: ChunkTimes, cores: float) -> Timeline:
    """When each operation starts and ends if the running operations share some cores equally.

    An operation uses one core while there are enough, and an equal share of them otherwise. With as many cores as ranks
    the result is that of `run_schedule`.
    """
    seconds = {"forward": times.forward, "backward": times.backward, "weight": times.weight}
    operations = schedule.operations
    waiting = [
        [event for event in events_of(schedule) if operations[event.number].rank == rank]
        for rank in range(schedule.ranks)
    ]
    start, end = np.full(len(operations), np.inf), np.full(len(operations), np.inf)
    left: dict[int, float] = {}  # work of the running operations, by rank
    now = 0.0
    while left or any(waiting):
        arrivals = []
        for rank, queue in enumerate(waiting):
            if rank in left or not queue:
                continue
            event, ready = queue[0], 0.0
            if event.source >= 0:
                ready = end[event.source] + (times.transfer[event.link] if event.link >= 0 else 0.0)
            if ready <= now:
                start[event.number] = now
                left[rank] = float(seconds[operations[event.number].kind][event.position])
            else:
                arrivals.append(ready)
        rate = min(1.0, cores / len(left)) if left else 1.0
        pause = min([work / rate for work in left.values()] + [one - now for one in arrivals], default=math.inf)
        now += pause
        for rank in list(left):
            left[rank] -= pause * rate
            if left[rank] <= 1e-12:
                del left[rank]
                end[waiting[rank].pop(0).number] = now
    return Timeline(schedule, start, end)


def predicted(case: tuple[int, int, int], layer: float, rest: float, update: float, cores: int) -> float:
    """Seconds of a step of a pipeline.

    Args:
        case: Pipeline ranks, virtual stages and micro-batches.
        layer: Forward and backward pass of one micro-batch through one layer.
        rest: The same for embedding and head, which are on the last rank for the most part.
        update: Clipping and optimizer of the whole model.
        cores: Cores of the machine.
    """
    ranks, virtual, micro_batches = case
    both = np.full(ranks * virtual, layer * LAYERS / (ranks * virtual))
    both[-1] += rest
    zero = np.zeros(len(both))
    times = ChunkTimes(both * FORWARD_SHARE, both * (1 - FORWARD_SHARE), zero, zero[1:])
    schedule = build_schedule("interleaved" if virtual > 1 else "1f1b", ranks, micro_batches, virtual)
    return float(run_on_cores(schedule, times, cores).seconds) + update / min(ranks, cores)


def _write_model(folder: Path, layers: int) -> Path:
    config = Path(__file__).parents[1] / "configs" / "models" / "quickstart" / "config.json"
    shape = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": layers, "vocab_size": VOCABULARY}
    target = folder / str(layers)
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(json.loads(config.read_text()) | shape))
    return target


def _measure(rounds: int, steps: int) -> dict[tuple[int, int, int, int], float]:
    """Median step time by layers, pipeline ranks, virtual stages and micro-batches; rounds are interleaved."""
    cases = [(LAYERS // 2, 1, 1, m) for m in (2, 8)] + [(LAYERS, 1, 1, m) for m in (1, 2, 4, 6, 8)]
    cases += [(LAYERS, *case) for case in CASES]
    times: dict[tuple[int, int, int, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for case in cases if number % 2 == 0 else reversed(cases):
                layers, ranks, virtual, micro_batches = case
                layout = Layout(pipeline=ranks, virtual_stages=virtual)
                arguments = (_write_model(Path(folder), layers), layout, micro_batches, steps)
                found = run_ranks(step_seconds, ranks, *arguments, timeout=600)[0]
                times.setdefault(case, []).extend(found)
                print(f"round {number + 1}: {case}: {statistics.median(found):.3f} s", file=sys.stderr, flush=True)
    return {case: statistics.median(found) for case, found in times.items()}


def _rows(
    times: dict[tuple[int, int, int, int], float], cores: int
) -> Iterator[tuple[tuple[int, int, int], float, float]]:
    whole = (times[LAYERS, 1, 1, 8] - times[LAYERS, 1, 1, 2]) / 6
    half = (times[LAYERS // 2, 1, 1, 8] - times[LAYERS // 2, 1, 1, 2]) / 6
    layer = (whole - half) / (LAYERS - LAYERS // 2)
    rest, update = whole - layer * LAYERS, max(0.0, times[LAYERS, 1, 1, 2] - 2 * whole)
    for case in CASES:
        one = times[LAYERS, 1, 1, case[2]]
        yield case, times[(LAYERS, *case)] / one, predicted(case, layer, rest, update, cores) / one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    rows = list(_rows(_measure(options.rounds, options.steps), cores))
    print(f"# Pipelines on CPU ranks beside their simulation, {date.today()}\n")
    print(f"{describe('paddlepaddle', 'paddlenlp')}; load {os.getloadavg()[0]:.1f} at the end\n")
    print("Step times as ratios to one process with the same micro-batches.\n")
    print("| pipeline ranks | virtual stages | micro-batches | measured | simulated | error |")
    print("|---|---|---|---|---|---|")
    for (ranks, virtual, micro_batches), measured, simulated in rows:
        error = simulated / measured - 1
        print(f"| {ranks} | {virtual} | {micro_batches} | {measured:.3f} | {simulated:.3f} | {error:+.1%} |")
    worst = max(abs(simulated / measured - 1) for _, measured, simulated in rows)
    print(f"\nLargest error {worst:.1%}.")


if __name__ == "__main__":
    main()
