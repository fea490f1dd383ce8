"""What packing brings on a file of instructions: real tokens per second beside padded batches, and how full the rows are.

    python benchmarks/packing.py INSTRUCTIONS.jsonl [--rounds 3] [--steps 12] > benchmarks/results/packing.md

Both sides are finetune_generation.py as a user types it, with the same network, interleaved: eight samples to a batch, padded to
the longest of them, and `--zero_padding`, one row of 1,024 to a batch, which holds about as many tokens. The tokenizer is trained
on the same file. Speeds are of `tokens_per_second` in metrics.jsonl, which counts no padding; the first two steps are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from machine import describe
from step_speed import SHAPE

from paddle_llm.data.samples.dataset import load_split

ROOT = Path(__file__).resolve().parents[1]
PIECES, ROW, BATCH, WARM_UP = 4000, 1024, 8, 2
SIDES = {
    f"unpacked, batch {BATCH}, padded to the longest": ["--per_device_train_batch_size", str(BATCH)],
    f"packed, rows of {ROW:,}": ["--per_device_train_batch_size", "1", "--zero_padding", "1"],
}
METHODS = {"full": [], "LoRA": ["--lora", "1"]}


def run(*words: str) -> str:
    """Stderr of a Python command.

    Raises:
        SystemExit: it failed; with what it said.
    """
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\nended with {done.returncode}:\n{done.stderr}")
    return done.stderr


def make_model(data: str, folder: Path) -> Path:
    """A folder with a tokenizer of the file's text and the shape of a network."""
    text = folder / "text.txt"
    with text.open("w", encoding="utf-8") as file:
        for conversation in load_split(data):
            for turn in conversation.turns:
                file.write(f"{turn.text}\n")
    model = folder / "model"
    run(
        *("-m", "paddle_llm.cli", "tokenizer", "train"),
        *("--input", str(text), "--output_dir", str(model), "--vocab_size", str(PIECES)),
    )
    shape = {**SHAPE, "vocab_size": PIECES, "max_position_embeddings": ROW}
    (model / "config.json").write_text(json.dumps(shape))
    return model


def train(data: str, model: Path, output: Path, steps: int, flags: list[str]) -> tuple[float, str]:
    """Real tokens per second of one job, and what it said."""
    said = run(
        "finetune_generation.py",
        *("--model_name_or_path", str(model), "--dataset_name_or_path", data, "--output_dir", str(output)),
        *("--do_train", "1", "--device", "cpu", "--continue_training", "0", "--overwrite_output_dir", "1"),
        *("--max_length", str(ROW), "--max_seq_length", str(ROW), "--max_steps", str(steps), "--learning_rate", "1e-4"),
        *("--logging_steps", "1", "--save_strategy", "no"),
        *flags,
    )
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()][WARM_UP:]
    seconds = sum(row["step_seconds"] for row in rows)
    return sum(row["tokens_per_second"] * row["step_seconds"] for row in rows) / seconds, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a file of instructions, in any format that finetune_generation.py reads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    data = str(Path(options.data).resolve())
    speeds: dict[tuple[str, str], list[float]] = {}
    packing = ""
    with tempfile.TemporaryDirectory() as temporary:
        model = make_model(data, Path(temporary))
        for round_number in range(options.rounds):
            for method in options.methods.split(","):
                for side, flags in SIDES.items():
                    flags = [*flags, *METHODS[method]]
                    speed, said = train(data, model, Path(temporary) / "output", options.steps, flags)
                    speeds.setdefault((method, side), []).append(speed)
                    print(
                        f"round {round_number + 1}: {method}, {side}: {speed:,.0f} tokens/s",
                        file=sys.stderr,
                        flush=True,
                    )
                    packing = next(iter(re.findall(r"packing: .*", said)), packing)
    report(Path(data).name, packing, speeds, options.rounds, options.steps)


def report(name: str, packing: str, speeds: dict[tuple[str, str], list[float]], rounds: int, steps: int) -> None:
    """The page."""
    padding = re.search(r"padding ([\d.]+)%", packing)
    if padding is None:
        sys.exit(f"the job does not say how full its rows are: {packing!r}")
    print(f"# Packed rows beside padded batches, {date.today()}\n")
    print(f"{describe('paddlepaddle', 'paddlenlp')}\n")
    print(
        f"`{name}`, tokenizer of {PIECES:,} pieces trained on it. Fill of rows of {ROW:,}: {100 - float(padding[1]):.2f}%.\n"
    )
    print(f"    {packing}\n")
    print(
        f"Real tokens per second (padding not counted): LLaMA hidden {SHAPE['hidden_size']}, {SHAPE['num_hidden_layers']} layers, "
        f"float32, one process. {rounds} interleaved rounds of {steps} steps, medians, the first {WARM_UP} steps left out.\n"
    )
    print("| method | | tokens/s | beside unpacked | round by round |\n|---|---|---|---|---|")
    unpacked = next(iter(SIDES))
    for (method, side), found in speeds.items():
        ratios = [mine / padded for mine, padded in zip(found, speeds[method, unpacked], strict=True)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {method} | {side} | {statistics.median(found):,.0f} | {statistics.median(ratios):.2f} | {each} |")


if __name__ == "__main__":
    main()
