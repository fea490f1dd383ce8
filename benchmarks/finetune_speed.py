"""Seconds per LoRA step on a CPU, FinetuneTrainer beside Hugging Face's Trainer with peft, interleaved in one run.

    python benchmarks/finetune_speed.py [--peer_python PYTHON] [--rounds 3] [--steps 8] > benchmarks/results/finetune_speed.md

PYTHON has torch, transformers, accelerate and peft; without it this one must. Both train LoRA of rank 8 beside every linear
layer of the blocks of the same LLaMA, on the same rows in the same order, padded to the longest of their batch; two threads,
float32, no dropout. Threads wait passively on both sides, as our entry points set it: those of torch wait busily unless told
otherwise, which costs it several times as much on a machine that others use too (`--busy_peer` measures that as well). Beside the
seconds stand those of the processor, of both threads together, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import describe
from step_speed import SHAPE

BATCH, RANK, WARM_UP = 8, 8, 2
LONGEST = 384
_IGNORED = -100
Ends = tuple[float, float]


def make_rows(count: int) -> list[tuple[np.ndarray, int]]:
    """(tokens of a sample, of its prompt): lengths as word problems have them, a median of 180, half of it the answer."""
    numbers = np.random.RandomState(0)
    lengths = np.exp(numbers.normal(np.log(180), 0.4, count)).clip(48, LONGEST).astype(int)
    return [(numbers.randint(4, SHAPE["vocab_size"], length), length // 2) for length in lengths]


# ---- one side of the comparison, in a process of its own -------------------------------------------------------------


def clock(base: type) -> Any:
    """A callback of `base` that notes when each step ends: (seconds, seconds of the processor)."""

    class Clock(base):  # type: ignore[misc, valid-type]
        ends: list[Ends] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.ends.append((time.perf_counter(), time.process_time()))

    return Clock()


class Rows:
    """The rows of all steps in their order.

    Attributes:
        samples_per_epoch: says to PretrainTrainer that this is the order.
    """

    samples_per_epoch = 1 << 20

    def __init__(self, steps: int, shifted: bool):
        self._rows, self._shifted = make_rows(steps * BATCH), shifted

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens, prompt = self._rows[index]
        labels = np.where(np.arange(len(tokens)) < prompt, _IGNORED, tokens)
        if self._shifted:
            return {"input_ids": tokens, "labels": np.append(labels[1:], _IGNORED)}
        return {"input_ids": tokens.tolist(), "labels": labels.tolist()}


def ours(folder: Path, steps: int) -> tuple[list[Ends], int]:
    """Ends of the steps and the number of trained parameters, of FinetuneTrainer."""
    from paddle_llm.parallel.process.environment import prepare_host

    prepare_host("cpu")
    from paddlenlp.trainer import TrainerCallback

    from paddle_llm.config.layout import Layout
    from paddle_llm.config.run_config import RunConfig
    from paddle_llm.families import FAMILIES
    from paddle_llm.parallel.process.start import start_process
    from paddle_llm.peft.method import method_of
    from paddle_llm.training.finetune import build_network, make_collator
    from paddle_llm.training.options import TrainerOptions
    from paddle_llm.training.trainers.finetune_trainer import FinetuneTrainer

    start_process("cpu", 1)
    from paddle_llm.training.arguments import training_arguments

    config = RunConfig(
        model_name_or_path=str(folder),
        output_dir=str(folder / "ours"),
        continue_training=False,
        do_train=True,
        device="cpu",
        lora=True,
        lora_rank=RANK,
        max_steps=steps,
        logging_steps=1,
        save_strategy="no",
        per_device_train_batch_size=BATCH,
        max_length=LONGEST,
        learning_rate=3e-4,
    )
    layout = Layout()
    callback = clock(TrainerCallback)
    trainer = FinetuneTrainer(
        model=build_network(config, layout, method_of(config), FAMILIES["llama"], "float32"),
        args=training_arguments(config, layout),
        layout=layout,
        options=TrainerOptions(),
        data_collator=make_collator(config, layout, 0),
        train_dataset=Rows(steps, shifted=True),
        callbacks=[callback],
    )
    trainer.train()
    trained = sum(int(np.prod(p.shape)) for p in trainer.model.parameters() if not p.stop_gradient)
    return callback.ends, trained


def peer(folder: Path, steps: int) -> tuple[list[Ends], int]:
    """The same of Hugging Face's Trainer and peft."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    def collate(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(sample["input_ids"]) for sample in samples)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for sample in samples:
            length = len(sample["input_ids"])
            batch["input_ids"].append(sample["input_ids"] + [0] * (longest - length))
            batch["labels"].append(sample["labels"] + [_IGNORED] * (longest - length))
            batch["attention_mask"].append([1] * length + [0] * (longest - length))
        return {name: torch.tensor(rows) for name, rows in batch.items()}

    torch.manual_seed(0)
    shape = {name: value for name, value in SHAPE.items() if name != "model_type"}
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**shape)), lora)
    args = TrainingArguments(
        output_dir=str(folder / "peer"),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        logging_steps=1,
        save_strategy="no",
        learning_rate=3e-4,
        disable_tqdm=True,
        use_cpu=True,
        report_to=[],
    )
    callback = clock(TrainerCallback)
    InOrder(
        model=model,
        args=args,
        train_dataset=Rows(steps, shifted=False),
        data_collator=collate,
        callbacks=[callback],
    ).train()
    return callback.ends, sum(p.numel() for p in model.parameters() if p.requires_grad)


class Side(NamedTuple):
    """What is measured: the function, the packages whose versions matter, the environment."""

    train: Callable[[Path, int], tuple[list[Ends], int]]
    packages: tuple[str, ...]
    environment: dict[str, str]


_PEER = (peer, ("torch", "transformers", "peft", "accelerate"))
OURS, PEER, BUSY = "ours", "Hugging Face Trainer + peft", "the same, its threads waiting busily"
SIDES = {
    OURS: Side(ours, ("paddlepaddle", "paddlenlp"), {}),
    PEER: Side(*_PEER, {"OMP_WAIT_POLICY": "PASSIVE"}),
    BUSY: Side(*_PEER, {}),
}


def work(name: str, folder: Path, steps: int) -> None:
    """Print what one side has measured."""
    side = SIDES[name]
    ends, trained = side.train(folder, steps)
    took = [[after - before for before, after in zip(a, b, strict=True)] for a, b in zip(ends, ends[1:], strict=False)]
    versions = ", ".join(f"{package} {version(package)}" for package in side.packages)
    print("RESULT", json.dumps({"steps": took, "trained": trained, "versions": versions}))


# ---- the comparison -------------------------------------------------------------------------------------------------


def measure(name: str, python: str, folder: Path, steps: int) -> dict[str, Any]:
    """What a side prints."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [python, "-W", "ignore", __file__, "--side", name, "--folder", str(folder), "--steps", str(steps)],
        env=inherited | {"OMP_NUM_THREADS": "2"} | SIDES[name].environment,
        capture_output=True,
        text=True,
    )
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not results:
        sys.exit(f"{name}:\n{done.stdout}\n{done.stderr}")
    return json.loads(results[0].split(" ", 1)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--busy_peer", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options.side, Path(options.folder), options.steps)
        return
    sides = [name for name in SIDES if name != BUSY or options.busy_peer]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "config.json").write_text(json.dumps(SHAPE))
        for round_number in range(options.rounds):
            for name in sides:
                python = sys.executable if name == OURS else options.peer_python
                result = measure(name, python, Path(temporary), options.steps)
                # Between the ends of steps 1 and 2 lies step 2: the first interval is that of the second step.
                found[name].append({**result, "steps": result["steps"][WARM_UP - 1 :]})
                medians = [statistics.median(times) for times in zip(*found[name][-1]["steps"], strict=True)]
                print(
                    f"round {round_number + 1}: {name}: {medians[0]:.3f} s, of the processor {medians[1]:.3f} s",
                    file=sys.stderr,
                )
    report(found, options.rounds, options.steps)


def report(found: dict[str, list[dict[str, Any]]], rounds: int, steps: int) -> None:
    """The page."""
    batches = [make_rows(steps * BATCH)[i : i + BATCH] for i in range(WARM_UP * BATCH, steps * BATCH, BATCH)]
    real = sum(len(tokens) for batch in batches for tokens, _ in batch) / len(batches)
    padded = sum(BATCH * max(len(tokens) for tokens, _ in batch) for batch in batches) / len(batches)
    figures = {name: figures_of(results) for name, results in found.items()}
    print(f"# Seconds per step of LoRA on a CPU, {date.today()}\n")
    print(f"{describe()}; load of the machine at the end: {os.getloadavg()[1]:.1f} over five minutes\n")
    for name, results in found.items():
        print(f"- {name}: {results[0]['versions']}; {results[0]['trained']:,} parameters trained")
    print(
        f"\nLLaMA hidden {SHAPE['hidden_size']}, {SHAPE['num_hidden_layers']} layers, vocabulary {SHAPE['vocab_size']}, LoRA of rank "
        f"{RANK} beside all linear layers, batch {BATCH}, rows of {real / BATCH:.0f} tokens on average, padded to the longest of the "
        f"batch ({padded / BATCH:.0f}), two threads, float32, one process. {rounds} interleaved rounds of {steps} steps, the first "
        f"{WARM_UP} left out. A step is the same batch in every round: its median over the rounds, and its least.\n"
    )
    print("| | s/step (median) | real tokens/s | s/step (least) | processor s/step (median) |\n|---|---|---|---|---|")
    for name, (median, least, processor) in figures.items():
        print(f"| {name} | {median:.3f} | {real / median:,.0f} | {least:.3f} | {processor:.3f} |")
    ratios = [theirs / mine for theirs, mine in zip(figures[PEER], figures[OURS], strict=True)]
    print(
        f"\nOur speed beside the peer's: {ratios[0]:.2f} by medians, {ratios[1]:.2f} by the least, {ratios[2]:.2f} by the processor's time."
    )


def figures_of(results: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Seconds of an average step: by medians over the rounds, by the least, and of the processor by medians."""
    by_step = list(zip(*(result["steps"] for result in results), strict=True))
    seconds = [[took[0] for took in rounds] for rounds in by_step]
    processor = [[took[1] for took in rounds] for rounds in by_step]
    return (
        statistics.mean(map(statistics.median, seconds)),
        statistics.mean(map(min, seconds)),
        statistics.mean(map(statistics.median, processor)),
    )


if __name__ == "__main__":
    main()
