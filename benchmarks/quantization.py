"""Perplexity of answers with fp32, 8-bit and 4-bit weights, and time and memory of GPTQ, for SmolLM2-135M-Instruct.

    python benchmarks/quantization.py --data ROWS.jsonl > benchmarks/results/quantization.md

The last `--held_out` rows of the file are scored; the calibration samples come from the rows before them. Every command runs in a
separate process, one after the other.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from machine import describe

ROOT = Path(__file__).parents[1]
# Name -> options of paddle-llm quantize, without the calibration.
WAYS = {
    "RTN, 8 bits": ["--method", "rtn", "--bits", "8"],
    "RTN, 4 bits": ["--method", "rtn", "--bits", "4"],
    "GPTQ, 4 bits": ["--bits", "4"],
    "GPTQ, 4 bits, act-order": ["--bits", "4", "--act_order"],
    "GPTQ, 3 bits, act-order": ["--bits", "3", "--act_order"],
}


def run(*words: object) -> tuple[str, float, int]:
    """Run paddle-llm and return its stdout, seconds and peak memory in bytes."""
    command = [sys.executable, "-m", "paddle_llm.cli", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return out, time.monotonic() - started, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="rows of instructions (jsonl)")
    parser.add_argument("--model", type=Path, help="model folder; by default that of tests/export/environments.py")
    parser.add_argument("--held_out", type=int, default=200)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--ways", default=",".join(str(number) for number in range(len(WAYS))), help="numbers of WAYS")
    options = parser.parse_args()
    ways = {list(WAYS)[int(number)]: list(WAYS.values())[int(number)] for number in options.ways.split(",")}
    if options.model is None:
        sys.path.insert(0, str(ROOT))
        from tests.export.environments import smollm2_folder

        options.model = smollm2_folder()
    lines = options.data.read_text(encoding="utf-8").splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "calibration.jsonl").write_text("".join(lines[: -options.held_out]), encoding="utf-8")
        (folder / "held_out.jsonl").write_text("".join(lines[-options.held_out :]), encoding="utf-8")
        found = _measure(folder, ways, options)
    _print(found, options)


def _measure(folder: Path, ways: dict[str, list[str]], options: argparse.Namespace) -> dict[str, dict]:
    """Return the row of `evaluate` of each way, with seconds and peak memory of its quantization."""
    found = {"fp32": _evaluate(options.model, folder)}
    for name, words in ways.items():
        calibration = ["--calibration", folder / "calibration.jsonl", "--calibration_samples", options.samples]
        calibration += ["--calibration_length", options.length]
        out = folder / name.replace(" ", "").replace(",", "-")
        _, seconds, peak = run("quantize", options.model, out, *words, *([] if "rtn" in words else calibration))
        found[name] = _evaluate(out, folder) | {"seconds": seconds, "peak": peak}
        print(name, found[name]["scores"], f"{seconds:.0f} s", file=sys.stderr, flush=True)
    return found


def _evaluate(model: Path, folder: Path) -> dict:
    out, _, _ = run("evaluate", model, "--input", folder / "held_out.jsonl", "--format", "json", "--device", "cpu")
    (row,) = json.loads(out)["models"]
    return row


def _print(found: dict[str, dict], options: argparse.Namespace) -> None:
    full = found["fp32"]["scores"]["perplexity"]
    rounded = found.get("RTN, 4 bits", {}).get("scores", {}).get("perplexity")
    print(f"# Quantization of SmolLM2-135M-Instruct, {date.today().isoformat()}\n")
    print(f"{describe('paddlepaddle', 'paddlenlp')}\n")
    print(
        f"Perplexity of the answers in {options.held_out} held-out rows of {options.data.name} ({found['fp32']['count']:,} tokens), with the chat template of the "
        f"model. Groups of 128, symmetric. GPTQ: {options.samples} x {options.length} calibration tokens from the other rows. fp32 means the dequantized Q4_1 weights "
        "of the published GGUF file, which lie on a grid of 4 bits already.\n"
    )
    print(
        "| weights | perplexity | above fp32 | share of the gap of RTN, 4 bits, that is closed | size on disk | seconds | peak memory |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in found.items():
        value = row["scores"]["perplexity"]
        closed = ""
        if rounded and "4 bits" in name:  # in log-perplexity, the mean loss
            closed = f"{1 - math.log(value / full) / math.log(rounded / full):.0%}"
        seconds, peak = (f"{row['seconds']:.0f}", f"{row['peak'] / 1e6:,.0f} MB") if "peak" in row else ("", "")
        size = f"{row['size_on_disk'] / 1e6:,.0f} MB"
        print(f"| {name} | {value:.4f} | {value / full - 1:+.2%} | {closed} | {size} | {seconds} | {peak} |")


if __name__ == "__main__":
    main()
