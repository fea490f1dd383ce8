"""What sharding stage 2 costs beside stage 1: the ratio of their step times on CPU ranks, interleaved in one run.

    python benchmarks/sharding_stage2.py [--rounds 3] [--steps 6] > benchmarks/results/sharding_stage2.md

Both through the real trainer over gloo: LLaMA of hidden 256, 4 layers, sequence 128, one sequence per micro batch,
float32. A step is the median of all steps but the first two of each training, on rank 0, whose step ends with everybody's.
The formula counts volume alone: stage 1 reduces the gradients once per step and broadcasts the weights, stage 2 reduces
once per micro batch, so that k micro batches move (k + 1) / 2 as much.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from machine import describe

from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig
from paddle_llm.rehearse.ranks import run_ranks

VOCABULARY, SEQUENCE = 4000, 128
LAYOUTS = {"sharding2": {"sharding": 2}, "sharding2 x pp2": {"sharding": 2, "pipeline": 2}}
MICRO_BATCHES = (1, 8)
WARM_UP = 2


class Tokens:
    """Random sequences, the same for both stages."""

    samples_per_epoch = 1 << 20

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        tokens = np.random.RandomState(index).randint(0, VOCABULARY, SEQUENCE + 1).astype("int64")
        return {"input_ids": tokens[:-1], "labels": tokens[1:]}


def step_seconds(folder: Path, layout: Layout, micro_batches: int, steps: int) -> list[float]:
    """One rank of a training; seconds of each step after the warm-up."""
    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", layout.world_size)
    from paddlenlp.trainer import TrainerCallback

    from paddle_llm.models.build import build_model
    from paddle_llm.training.arguments import training_arguments
    from paddle_llm.training.options import TrainerOptions
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append(time.perf_counter())

    config = RunConfig(
        model_name_or_path=str(folder),
        output_dir=str(folder / "output"),
        do_train=True,
        device="cpu",
        max_steps=steps + WARM_UP,
        save_strategy="no",
        max_seq_length=SEQUENCE,
        gradient_accumulation_steps=micro_batches,
        report_to=["none"],
        disable_tqdm=True,
    )
    args = training_arguments(config, layout)
    trainer = PretrainTrainer(
        model=build_model(config, layout, dtype="float32"),
        args=args,
        layout=layout,
        options=TrainerOptions(curves=False),
        train_dataset=Tokens((steps + WARM_UP) * micro_batches * layout.data_world_size),
        callbacks=[Clock()],
    )
    trainer.train()
    return list(np.diff(ends)[WARM_UP - 1 :])


def _write_model(folder: Path) -> None:
    """The quickstart's network."""
    config = Path(__file__).parents[1] / "configs" / "models" / "quickstart" / "config.json"
    (folder / "config.json").write_text(config.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    times: dict[tuple[str, int, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        _write_model(Path(temporary))
        for round_number in range(options.rounds):
            for name, degrees in LAYOUTS.items():
                for micro_batches in MICRO_BATCHES:
                    for stage in (1, 2) if round_number % 2 == 0 else (2, 1):
                        layout = Layout(**degrees, sharding_stage=stage)
                        arguments = (Path(temporary), layout, micro_batches, options.steps)
                        found = run_ranks(step_seconds, layout.world_size, *arguments, timeout=600)[0]
                        times.setdefault((name, micro_batches, stage), []).extend(found)
                        told = f"round {round_number + 1}: {layout}, {micro_batches} micro batches"
                        print(f"{told}: {statistics.median(found):.3f} s", file=sys.stderr, flush=True)
    _report(times)


def _report(times: dict[tuple[str, int, int], list[float]]) -> None:
    print(f"# Sharding stage 2 beside stage 1 on CPU ranks, {date.today()}\n")
    print(f"{describe('paddlepaddle', 'paddlenlp')}\n")
    print(
        f"The quickstart's LLaMA (hidden 256, 4 layers, vocabulary {VOCABULARY}), sequence {SEQUENCE}, one sequence per micro "
        "batch, float32, gloo; medians of interleaved rounds. Volume is what (k + 1) / 2 says for k micro batches.\n"
    )
    print("| layout | micro batches | stage 1, s/step | stage 2, s/step | time, stage 2 / 1 | volume, stage 2 / 1 |")
    print("|---|---|---|---|---|---|")
    for name in LAYOUTS:
        for micro_batches in MICRO_BATCHES:
            one, two = (statistics.median(times[name, micro_batches, stage]) for stage in (1, 2))
            volume = (micro_batches + 1) / 2
            print(f"| {name} | {micro_batches} | {one:.3f} | {two:.3f} | {two / one:.2f} | {volume:.1f} |")


if __name__ == "__main__":
    main()
