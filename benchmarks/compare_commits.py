"""Compare two checkouts bit for bit: the same short runs, saved files and commands on both.

    python benchmarks/compare_commits.py BEFORE AFTER [--only SUBSTRING ...] > benchmarks/results/compare_commits.md

BEFORE and AFTER are folders of checkouts (`git worktree add --detach FOLDER COMMIT`). Each job runs with both, in the same
environment and on the same data: one training per model family, one fine-tuning per method, layouts of two ranks. Equal must
be, to the last bit: losses, gradient norms and evaluation losses of metrics.jsonl, the saved weights, the generated text, and
the exported tensors; equal must also be the values of config.resolved.json, the keys of metrics.jsonl and the flag names of each --help.
AFTER also resumes the checkpoints of BEFORE and generates from the models that BEFORE saved. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from machine import describe
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers.models import tiny  # noqa: E402

VOCABULARY = 400
TRAINING = (
    "--do_train --do_eval --device cpu --max_steps 6 --logging_steps 1 --eval_steps 3 --save_steps 3 --save_strategy steps "
    "--evaluation_strategy steps --report_to none --disable_tqdm true --gradient_accumulation_steps 2 --continue_training 0"
)
PRETRAIN = f"{TRAINING} --tokenizer_name_or_path tokenizer --input_dir data --split 900,90,10 --max_seq_length 32 --eval_iters 2 --learning_rate 1e-2"
FINETUNE = f"{TRAINING} --dataset_name_or_path instructions --max_length 96 --learning_rate 5e-3 --per_device_train_batch_size 2"
# Numbers of time and speed differ between any two runs.
TIMED = ("seconds", "per_second", "mfu", "memory", "time", "eta", "tflops")


@dataclass(frozen=True)
class Job:
    """One training, run with both checkouts.

    Attributes:
        name: Name of the job and of its output folder.
        flags: Command line without the output folder.
        script: Entry script.
        ranks: Number of ranks.
        exports: Targets to which the result is exported.
    """

    name: str
    flags: str
    script: str = "run_pretrain.py"
    ranks: int = 1
    exports: tuple[str, ...] = ()


def jobs() -> list[Job]:
    """One job per family, method and kind of layout."""
    found = [
        Job(f"pretrain {family}", f"--model_name_or_path {family} {PRETRAIN}", exports=("hf",))
        for family in ("llama", "qwen2", "chatglm", "chatglm2", "bloom", "opt", "glm")
    ]
    base = f"--model_name_or_path llama --tokenizer_name_or_path tokenizer {FINETUNE}"
    methods = {
        "full": "",
        "packed": "--zero_padding true",
        "lora": "--lora true --merge_weights true",
        "rslora": "--lora true --rslora true",
        "dora": "--lora true --dora true",
        "adalora": "--adalora true --adalora_budget_interval 1",
        "prefix": "--prefix_tuning true --num_prefix_tokens 4",
        "prompt": "--prompt_tuning true --num_prompt_tokens 4",
        "adapter": "--adapter true --adapter_size 8",
        "freeze": "--freeze_layers 1",
        "chosen weights": "--trainable_modules .*mlp.*",
    }
    found += [Job(f"finetune {name}", f"{base} {flags}", "finetune_generation.py") for name, flags in methods.items()]
    layouts = {
        "tp2": "--tensor_parallel_degree 2",
        "pp2": "--pipeline_parallel_degree 2",
        "stage1": "--sharding stage1",
        "stage2": "--sharding stage2",
        "stage3": "--sharding stage3",
    }
    found += [
        Job(f"llama {name}", f"--model_name_or_path llama {PRETRAIN} {flags}", ranks=2)
        for name, flags in layouts.items()
    ]
    return found


class Checkout:
    """One checkout and the folder in which its jobs run."""

    def __init__(self, name: str, tree: Path, work: Path):
        self.name, self.tree, self.work = name, tree.resolve(), work / name

    def run(self, *command: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
        """Run Python with this checkout first on its path."""
        environment = os.environ | {"PYTHONPATH": str(self.tree), "PYTHONWARNINGS": "ignore"}
        launch = (
            ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), "--log_dir", "log"] if ranks > 1 else []
        )
        return subprocess.run(
            [sys.executable, *launch, *command], cwd=self.work, env=environment, capture_output=True, text=True
        )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `paddle-llm WORDS`."""
        return self.run("-m", "paddle_llm.cli", *words)

    def train(self, job: Job, output: str, more: str = "") -> str:
        """Run one job; the error of a failed one is the result."""
        done = self.run(
            str(self.tree / job.script), *job.flags.split(), "--output_dir", output, *more.split(), ranks=job.ranks
        )
        return "" if done.returncode == 0 else f"{self.name}: exit code {done.returncode}: {done.stderr[-600:]}"


def prepare(before: Checkout, after: Checkout) -> None:
    """Write the same models, tokenizer and data into the folders of both checkouts."""
    folder = before.work
    folder.mkdir(parents=True)
    for family in ("llama", "qwen2", "chatglm", "chatglm2", "bloom", "opt", "glm"):
        size = {"padded_vocab_size": VOCABULARY} if family == "chatglm2" else {"vocab_size": VOCABULARY}
        getattr(tiny, f"write_{family}")(folder / family, **size)
    texts = [topics[name] for name in sorted(topics)[:60]]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    draw = np.random.RandomState(0)
    (folder / "instructions").mkdir()
    for split, count in (("train", 48), ("dev", 8)):
        rows = []
        for _ in range(count):
            numbers = [str(n) for n in draw.randint(0, 150, 1 + draw.randint(6))]
            rows.append(json.dumps({"src": "word" + " word".join(numbers), "tgt": "word" + numbers[-1]}) + "\n")
        (folder / "instructions" / f"{split}.json").write_text("".join(rows))
    _expect(
        before.command(
            "tokenizer", "train", "--input", "text.jsonl", "--output_dir", "tokenizer", "--vocab_size", str(VOCABULARY)
        )
    )
    built = ("--input", "text.jsonl", "--tokenizer", "tokenizer", "--output_prefix", "data/text", "--workers", "1")
    _expect(before.command("data", "build", *built))
    shutil.copytree(folder, after.work)


def _expect(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode != 0:
        sys.exit(done.stderr)


def rows_of(output: Path) -> list[dict]:
    """The rows of metrics.jsonl without times, and without rows about checkpoints, which have nothing else."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "save_seconds" not in row and "load_seconds" not in row]
    return [{key: value for key, value in row.items() if not any(word in key for word in TIMED)} for row in rows]


def keys_of(output: Path) -> list[str]:
    """All keys of metrics.jsonl."""
    return sorted({key for line in (output / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)})


def resolved_of(output: Path, checkout: Checkout) -> Any:
    """config.resolved.json without paths of the checkout and without the reasons in words ("derived: on a CPU, ...")."""
    text = (output / "config.resolved.json").read_text()
    return _without_reasons(json.loads(text.replace(str(checkout.work), "WORK").replace(str(checkout.tree), "TREE")))


def _without_reasons(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: entry.split(":")[0] if key == "origin" and isinstance(entry, str) else _without_reasons(entry)
            for key, entry in value.items()
        }
    return value


def different_tensors(first: Path, second: Path) -> str:
    """What differs between the safetensors files of two folders; empty where all bits are equal."""
    files = sorted(str(file.relative_to(first)) for file in first.rglob("*.safetensors"))
    others = sorted(str(file.relative_to(second)) for file in second.rglob("*.safetensors"))
    if files != others or not files:
        return f"files {files} and {others}"
    for file in files:
        one, two = load_file(first / file), load_file(second / file)
        if one.keys() != two.keys():
            return f"{file}: names {sorted(one.keys() ^ two.keys())[:4]}"
        unequal = [name for name in one if one[name].tobytes() != two[name].tobytes()]
        if unequal:
            return f"{file}: {len(unequal)} of {len(one)} tensors, such as {unequal[0]}"
    return ""


def compare_job(job: Job, before: Checkout, after: Checkout) -> Iterator[str]:
    """Run one job with both checkouts; yields each difference."""
    output = job.name.replace(" ", "_")
    failures = [failure for checkout in (before, after) if (failure := checkout.train(job, output))]
    if failures:
        yield "; ".join(failures)
        return
    one, two = before.work / output, after.work / output
    yield from _unequal("rows", rows_of(one), rows_of(two))
    yield from _unequal("keys of metrics.jsonl", keys_of(one), keys_of(two))
    yield from _unequal("config.resolved.json", resolved_of(one, before), resolved_of(two, after))
    yield from _named("weights", different_tensors(one, two))
    for target in job.exports:
        yield from _exports(target, output, before, after)
    yield from _resumed(job, output, before, after)
    if job.ranks == 1:
        yield from _generated(output, before, after)


def _exports(target: str, output: str, before: Checkout, after: Checkout) -> Iterator[str]:
    words = ("export", output, "--target", target, f"{output}_{target}", "--no_verify")
    codes = [checkout.command(*words).returncode for checkout in (before, after)]
    yield from _unequal(f"exit codes of export {target}", *codes)
    if codes == [0, 0]:
        folders = [checkout.work / f"{output}_{target}" for checkout in (before, after)]
        yield from _named(f"export {target}", different_tensors(*folders))


def _resumed(job: Job, output: str, before: Checkout, after: Checkout) -> Iterator[str]:
    """AFTER continues the checkpoint of BEFORE to the same end."""
    resumed = after.work / f"{output}_resumed"
    shutil.copytree(before.work / output / "checkpoint-3", resumed / "checkpoint-3")
    for name in ("metrics.jsonl", "config.resolved.json", "run.json"):
        if (before.work / output / name).exists():
            shutil.copy(before.work / output / name, resumed / name)
    failure = after.train(job, resumed.name, f"--resume_from_checkpoint {resumed.name}/checkpoint-3")
    if failure:
        yield f"resume: {failure}"
        return
    for part in ("model", "adapter"):
        if (before.work / output / part).is_dir():
            yield from _named("resumed weights", different_tensors(before.work / output / part, resumed / part))
    yield from _unequal("resumed rows", rows_of(before.work / output)[-1], rows_of(resumed)[-1])


def _generated(output: str, before: Checkout, after: Checkout) -> Iterator[str]:
    """Both checkouts generate the same text from the model that BEFORE saved."""
    words = (
        "generate",
        str(before.work / output),
        "--prompt",
        "word12 word7",
        "--max_new_tokens",
        "12",
        "--device",
        "cpu",
    )
    if not output.startswith("finetune"):
        words = (*words, "--tokenizer", str(before.work / "tokenizer"))
    done = [checkout.command(*words) for checkout in (before, after)]
    yield from _unequal("exit codes of generate", *(one.returncode for one in done))
    yield from _unequal("generated text", *(one.stdout for one in done))


def _unequal(what: str, one: object, two: object) -> Iterator[str]:
    if one != two:
        yield f"{what} differ: {str(one)[:200]} and {str(two)[:200]}"


def _named(what: str, difference: str) -> Iterator[str]:
    if difference:
        yield f"{what} differ: {difference}"


def compare_flags(before: Checkout, after: Checkout) -> Iterator[str]:
    """Compare the flag names of every --help."""
    scripts = [("run_pretrain.py", "--help"), ("finetune_generation.py", "--help")]
    commands = ["tokenizer train", "data build", "data inspect", "data self-cognition", "check-model", "rehearse"]
    commands += ["generate", "export", "convert", "board"]
    for script, flag in scripts:
        found = [_flags(checkout.run(str(checkout.tree / script), flag).stdout) for checkout in (before, after)]
        yield from _unequal(f"flags of {script}", sorted(found[0] ^ found[1]), [])
    for command in commands:
        found = [_flags(checkout.command(*command.split(), "--help").stdout) for checkout in (before, after)]
        yield from _unequal(f"flags of paddle-llm {command}", sorted(found[0] ^ found[1]), [])
        yield from _unequal(f"paddle-llm {command} has flags", bool(found[1]), True)


def _flags(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z0-9_-]*", text))


def main() -> int:
    """Run all comparisons and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="SUBSTRING", help="jobs whose names contain one of these"
    )
    arguments = parser.parse_args()
    different = 0
    print(f"# Two commits bit for bit, {date.today()}\n")
    print(f"{describe('paddlepaddle', 'paddlenlp')}\n")
    print(f"Before: {_commit(arguments.before)}. After: {_commit(arguments.after)}.\n")
    print("| job | differences |\n|---|---|")
    with tempfile.TemporaryDirectory() as work:
        before, after = (
            Checkout(name, tree, Path(work))
            for name, tree in (("before", arguments.before), ("after", arguments.after))
        )
        prepare(before, after)
        comparisons: list[tuple[str, Callable[[], Iterator[str]]]] = [
            ("flags of --help", lambda: compare_flags(before, after))
        ]
        comparisons += [(job.name, lambda job=job: compare_job(job, before, after)) for job in jobs()]
        for name, comparison in comparisons:
            if arguments.only and not any(part in name for part in arguments.only):
                continue
            found = list(comparison())
            different += bool(found)
            print(f"| {name} | {'<br>'.join(found).replace('|', chr(92) + '|') if found else 'none'} |", flush=True)
            print(f"{name}: {found or 'equal'}", file=sys.stderr, flush=True)
    return 1 if different else 0


def _commit(tree: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(tree), "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
