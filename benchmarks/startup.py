"""Seconds from `python -m paddle.distributed.launch` to the first finished step on 4 CPU ranks, by size of the corpus.

    python benchmarks/startup.py [--documents 1000 100000] > benchmarks/results/...md

Each corpus is started twice: the first start builds and checks its index, the second finds it. The layout is tp2 x pp2.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from machine import describe

ROOT = Path(__file__).parents[1]
VOCABULARY, SEQUENCE = 400, 128


def _text(folder: Path, documents: int) -> Path:
    """Documents of 20 to 80 invented words, the same for every run."""
    random = np.random.RandomState(0)
    words = ["".join(chr(97 + c) for c in random.randint(0, 26, random.randint(2, 9))) for _ in range(2000)]
    path = folder / f"{documents}.jsonl"
    with path.open("w") as file:
        for _ in range(documents):
            chosen = random.randint(0, len(words), random.randint(20, 80))
            file.write(json.dumps({"text": " ".join(words[i] for i in chosen)}) + "\n")
    return path


def _command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "paddle_llm.cli", *words], cwd=ROOT, check=True, capture_output=True)


def _seconds_to_first_step(folder: Path, corpus: str) -> float:
    output = folder / f"output-{time.monotonic_ns()}"
    flags = {
        "model_name_or_path": folder / "llama",
        "tokenizer_name_or_path": folder / "tokenizer",
        "input_dir": corpus,
        "output_dir": output,
        "max_seq_length": SEQUENCE,
        "max_steps": 1000,
        "logging_steps": 1,
        "gradient_accumulation_steps": 2,
        "tensor_parallel_degree": 2,
        "pipeline_parallel_degree": 2,
        "device": "cpu",
    }
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    launcher = [
        sys.executable,
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        "4",
        "--log_dir",
        str(folder / "log"),
    ]
    began = time.monotonic()
    job = subprocess.Popen(
        [*launcher, "run_pretrain.py", *words, "--do_train"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = output / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        if job.poll() is not None:
            sys.exit((folder / "log" / "workerlog.0").read_text())
        time.sleep(0.02)
    seconds = time.monotonic() - began
    job.terminate()
    job.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"# From launch to the first step, {date.today()}\n")
    print(f"{describe('paddlepaddle', 'paddlenlp')}; 4 ranks, tp2 x pp2\n")
    print("| documents | first start | later starts |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small = _text(folder, min(options.documents))
        _command(
            "tokenizer",
            "train",
            "--input",
            str(small),
            "--output_dir",
            f"{folder}/tokenizer",
            "--vocab_size",
            str(VOCABULARY),
        )
        (folder / "llama").mkdir()
        shape = json.loads((ROOT / "configs/models/quickstart/config.json").read_text()) | {"vocab_size": VOCABULARY}
        (folder / "llama/config.json").write_text(json.dumps(shape))
        for documents in options.documents:
            prefix = f"{folder}/corpus{documents}/c"
            _command(
                "data",
                "build",
                "--input",
                str(_text(folder, documents)),
                "--tokenizer",
                f"{folder}/tokenizer",
                "--output_prefix",
                prefix,
            )
            first, *later = (_seconds_to_first_step(folder, prefix) for _ in range(1 + options.rounds))
            print(f"| {documents:,} | {first:.1f} s | {', '.join(f'{s:.1f} s' for s in later)} |", flush=True)


if __name__ == "__main__":
    main()
