"""What fine-tuning does: exact match on held-out questions before and after, by method, from one base pretrained on a CPU.

    python benchmarks/real_effect.py [--methods full,lora] [--folder KEPT] > benchmarks/results/real_effect.md

The task and its text are those of arithmetic_and_identity.py. Everything is run as a user types it: `paddle-llm tokenizer
train`, `paddle-llm data build`, run_pretrain.py once, then finetune_generation.py once to a method, which ends by answering the
test questions greedily. Seconds are those of whole commands: start of Python, training, saving, answering.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

import arithmetic_and_identity
from machine import describe

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY, SEQUENCE = 1500, 64
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "initializer_range": 0.04,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
PRETRAIN = {
    "continue_training": False,
    "split": "99,1,0",
    "max_seq_length": SEQUENCE,
    "per_device_train_batch_size": 32,
    "max_steps": 2000,
    "learning_rate": 3e-3,
    "warmup_steps": 50,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "logging_steps": 50,
    "save_strategy": "no",
}
FINETUNE = {
    "max_length": SEQUENCE,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 100,
    "weight_decay": 0.0,
    "logging_steps": 50,
    "save_strategy": "no",
    "eval_with_do_generation": True,
    "generation_max_new_tokens": 64,
    "do_predict": True,
}
# Adapters of any kind start from nothing, so they take larger steps than the weights themselves.
METHODS = {
    "full": {"learning_rate": 1e-3, "num_train_epochs": 10},
    "lora": {"lora": True, "lora_rank": 16, "learning_rate": 3e-3, "num_train_epochs": 12},
    "prefix": {"prefix_tuning": True, "num_prefix_tokens": 32, "learning_rate": 1e-1, "num_train_epochs": 12},
    "adapter": {"adapter": True, "adapter_size": 32, "learning_rate": 1e-2, "num_train_epochs": 8},
}
_TASK = """The task ([arithmetic_and_identity.py](../arithmetic_and_identity.py)), {train:,} rows to train on and {test} to answer, half English and half
Chinese: sums of two-digit numbers, and who one is, by a name that stands before the question.
No pair of operands (in either order) and no name of a test question is in the training rows or in the
text of the pretraining. That text does hold bare sums of other pairs ("34+58=92") and sentences with other names:
what is learned in fine-tuning is to understand the questions and to answer in one fixed form. An answer counts when every
character is right; it is written greedily.

LLaMA, hidden {hidden_size}, {num_hidden_layers} layers, vocabulary {vocab_size} (digits are pieces of their own), float32, one process."""


class Cost(NamedTuple):
    """Of a whole command: seconds on the clock, and of all threads on a processor (which a busy machine changes less)."""

    seconds: float
    cpu_seconds: float


@dataclass
class Result:
    """A command's outcome. exact_match: share of the test rows, 0 to 1; by_task: the same by task and language."""

    seconds: float
    cpu_seconds: float
    steps: int
    trained: str
    exact_match: float
    by_task: dict[str, float]


def run(*words: object) -> tuple[Cost, str]:
    """What a Python command took and what it said on stderr.

    Raises:
        SystemExit: it failed; with what it said.
    """
    began, used = time.perf_counter(), _cpu_seconds()
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\nended with {done.returncode}:\n{done.stderr}")
    return Cost(time.perf_counter() - began, _cpu_seconds() - used), done.stderr


def _cpu_seconds() -> float:
    """Of all commands that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def launch(script: str, folder: Path, settings: dict[str, object]) -> tuple[Cost, str]:
    """An entry script with a config file; its folder is the output folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder.with_suffix(".json")
    config.write_text(
        json.dumps({"device": "cpu", "output_dir": str(folder), "overwrite_output_dir": True, **settings}, indent=1)
    )
    return run(script, config)


def make_base(folder: Path, seed: int) -> dict[str, float]:
    """Task, tokenizer, corpus and a base pretrained on it; the seconds of the pretraining and its last loss."""
    arithmetic_and_identity.write(folder, seed)
    text, words, tokenizer = folder / "text.txt", folder / "words.txt", folder / "tokenizer"
    rows = [json.loads(line) for line in (folder / "data" / "train.json").read_text("utf-8").splitlines()]
    # The questions' letters and characters, too, lest they be spelled in bytes.
    words.write_text(text.read_text("utf-8") + "".join(f"{row['src']}\n{row['tgt']}\n" for row in rows), "utf-8")
    cli = ("-m", "paddle_llm.cli")
    size = ("--vocab_size", VOCABULARY, "--model_type", "bpe", "--character_coverage", 1.0)
    run(*cli, "tokenizer", "train", "--input", words, "--output_dir", tokenizer, *size)
    prefix = folder / "corpus" / "text"
    run(*cli, "data", "build", "--input", text, "--tokenizer", tokenizer, "--output_prefix", prefix)
    shape = folder / "shape"
    shape.mkdir(exist_ok=True)
    (shape / "config.json").write_text(json.dumps(SHAPE))
    places = {
        "model_name_or_path": str(shape),
        "tokenizer_name_or_path": str(tokenizer),
        "input_dir": str(prefix.parent),
    }
    cost, _ = launch("run_pretrain.py", folder / "base", {**places, **PRETRAIN, "do_train": True})
    losses = [row["loss"] for row in rows_of(folder / "base" / "metrics.jsonl") if "loss" in row]
    return {**cost._asdict(), "loss": losses[-1]}


def finetune(folder: Path, name: str) -> Result:
    """One of METHODS and its answers; "base": the answers before."""
    method, output = METHODS.get(name), folder / f"tuned_{name}"
    data = {"model_name_or_path": str(folder / "base" / "model"), "dataset_name_or_path": str(folder / "data")}
    training = {"do_train": True, **method} if method else {}
    cost, said = launch("finetune_generation.py", output, {**data, **FINETUNE, **training})
    last = rows_of(output / "metrics.jsonl")[-1]
    share = re.search(r"\(([\d.]+%)\)", next((line for line in said.splitlines() if "are trained" in line), ""))
    answers = rows_of(output / f"generated-test-{last['step']}.jsonl")
    asked = rows_of(folder / "data" / "test.json")
    return Result(
        *cost,
        last["step"],
        share[1] if share else "100%" if method else "-",
        last["test_exact_match"],
        _by_task(asked, answers),
    )


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _by_task(asked: Sequence[dict], answers: Sequence[dict]) -> dict[str, float]:
    found = defaultdict(list)
    for question, answer in zip(asked, answers, strict=True):
        assert question["tgt"] == answer["reference"], answer
        found[f"{question['task']} {question['language']}"].append(answer["generated"].strip() == answer["reference"])
    return {name: sum(right) / len(right) for name, right in sorted(found.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="by comma (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the task")
    parser.add_argument("--folder", type=Path, help="keep everything here, and take a base that is here already")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    names = options.methods.split(",")
    if unknown := set(names) - set(METHODS):
        parser.error(f"--methods: {', '.join(sorted(unknown))}: known are {', '.join(METHODS)}")
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure((options.folder or Path(temporary)).resolve(), names, options.seed)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    report(figures)


def measure(folder: Path, names: Sequence[str], seed: int) -> dict:
    """A base, its answers, and each method's: the figures of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "pretraining.json"
    if not record.exists():
        record.write_text(json.dumps(make_base(folder, seed)))
    base = json.loads(record.read_text())
    tell(f"base: {base['seconds']:.0f} s, loss {base['loss']:.3f}")
    results = {}
    for name in ("base", *names):
        results[name] = finetune(folder, name)
        tell(f"{name}: exact match {results[name].exact_match:.1%}, {results[name].seconds:.0f} s")
    return {"base": base, "seed": seed, "results": {name: asdict(result) for name, result in results.items()}}


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def report(figures: dict) -> None:
    """The page."""
    results, base = figures["results"], figures["base"]
    tuned = {name: result for name, result in results.items() if name != "base"}
    before = results["base"]
    print(f"# What fine-tuning does on held-out questions, {date.today()}\n")
    print(f"{describe('paddlepaddle', 'paddlenlp')}\n")
    print(
        _TASK.format(train=arithmetic_and_identity.TRAIN_ROWS, test=arithmetic_and_identity.TEST_ROWS, **SHAPE) + "\n"
    )
    steps, batch = PRETRAIN["max_steps"], PRETRAIN["per_device_train_batch_size"]
    print(
        f"The base: run_pretrain.py, {steps} steps of {batch} x {SEQUENCE} tokens in {base['seconds'] / 60:.1f} minutes, last loss "
        f"{base['loss']:.3f}. Not in the seconds below.\n"
    )
    print(
        "| method | trained | steps | seconds | CPU seconds | exact match before | after |\n|---|---|---|---|---|---|---|"
    )
    for name, result in tuned.items():
        print(
            f"| {name} | {result['trained']} | {result['steps']} | {result['seconds']:.0f} | {result['cpu_seconds']:.0f} | "
            f"{before['exact_match']:.1%} | {result['exact_match']:.1%} |"
        )
    total = sum(result["seconds"] for result in tuned.values())
    used = sum(result["cpu_seconds"] for result in tuned.values())
    print(
        f"\nAll of them together: {total / 60:.1f} minutes, {used / 60:.1f} on a processor. Settings: `METHODS` in the script.\n"
    )
    print("After, by task and language:\n")
    tasks = list(before["by_task"])
    print(f"| method | {' | '.join(tasks)} |\n|---|{'---|' * len(tasks)}")
    for name, result in tuned.items():
        shares = " | ".join(f"{result['by_task'][task]:.0%}" for task in tasks)
        print(f"| {name} | {shares} |")


if __name__ == "__main__":
    main()
