"""Speed and memory of `paddle-llm export --target hf`, beside copying the same files, for a model of 1 GB.

    python benchmarks/export_speed.py [--rounds 5] [--folder DIR] > benchmarks/results/export_speed.md

The source is what a run leaves in OUTPUT/model: PaddleNLP's names and [in, out] matrices, each of which the export transposes.
Export and copy (shutil.copyfile and fsync) take turns in one run, on one disk, both from files that the page cache holds. An
export runs in a process of its own; its seconds are those from opening the source to the last flush, its memory is the
peak of resident memory (mapped files included) above what the imports take.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from machine import describe

ROOT = Path(__file__).parents[1]
CASES = {  # stored, asked for, layers
    "fp32, as stored": ("float32", None, 3),
    "bf16, as stored": ("bfloat16", None, 8),
    "fp32 to bf16": ("float32", "bfloat16", 3),
}
SHAPE = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5504, "num_attention_heads": 16}


def _write_model(folder: Path, dtype: str, layers: int) -> None:
    """A LLaMA of random bits under PaddleNLP's names."""
    sys.path.insert(0, str(ROOT))
    from paddle_llm.models.weights.files import write_safetensors

    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": layers, **SHAPE}
    (folder / "config.json").write_text(json.dumps(config))
    hidden, inner, words = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
    shapes = {
        "llama.embed_tokens.weight": (words, hidden),
        "llama.norm.weight": (hidden,),
        "lm_head.weight": (hidden, words),
    }
    for layer in range(layers):
        for name, shape in (
            *((f"self_attn.{part}_proj", (hidden, hidden)) for part in "qkvo"),
            *((f"mlp.{part}_proj", (hidden, inner)) for part in ("gate", "up")),
            ("mlp.down_proj", (inner, hidden)),
            *((part, (hidden,)) for part in ("input_layernorm", "post_attention_layernorm")),
        ):
            shapes[f"llama.layers.{layer}.{name}.weight"] = shape
    random = np.random.default_rng(0)
    wanted = np.float32 if dtype == "float32" else np.uint16
    tensors = {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape, np.float32) * 0.02
        tensors[name] = values if wanted is np.float32 else (values.view(np.uint32) >> 16).astype(np.uint16)
    write_safetensors(folder / "model.safetensors", tensors)


_EXPORT = """
import json, sys, time
from pathlib import Path
from paddle_llm.generation.network import start_process
start_process("cpu")
from paddle_llm.export.options import Options
from paddle_llm.export.targets.hugging_face import write_config, write_weights
from paddle_llm.export.source.open import open_source
def memory(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))
baseline, began = memory("VmRSS"), time.monotonic()
source = open_source(Path(sys.argv[1]))
options = Options(dtype=sys.argv[3] or None)
write_config(source, Path(sys.argv[2]), options)
write_weights(source, Path(sys.argv[2]), options)
largest = max(source.read(name).nbytes for name in source.names())
print(json.dumps([time.monotonic() - began, memory("VmHWM") - baseline, largest]))
"""


def _export(folder: Path, out: Path, dtype: str | None) -> tuple[float, int, int]:
    """Seconds, bytes of memory above the imports, bytes of the largest tensor."""
    out.mkdir()
    words = [sys.executable, "-c", _EXPORT, str(folder), str(out), dtype or ""]
    done = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    seconds, memory, largest = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory, largest


def _copy(file: Path, target: Path) -> float:
    began = time.monotonic()
    shutil.copyfile(file, target)
    handle = os.open(target, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    return time.monotonic() - began


def _measure(place: Path, name: str, rounds: int) -> str:
    stored, asked, layers = CASES[name]
    folder, out = place / "model", place / "out"
    _write_model(folder, stored, layers)
    weights = folder / "model.safetensors"
    read, exports, copies, written = weights.stat().st_size, [], [], 0
    for _ in range(rounds):
        exports.append(_export(folder, out, asked))
        written = (out / "model.safetensors").stat().st_size
        shutil.rmtree(out)
        copies.append(_copy(weights, place / "copy"))
        (place / "copy").unlink()
    shutil.rmtree(folder)
    ours = [read / seconds / 1e6 for seconds, *_ in exports]
    raw = [read / seconds / 1e6 for seconds in copies]
    ratios = [a / b for a, b in zip(ours, raw, strict=True)]
    memory, largest = max(peak for _, peak, _ in exports), exports[0][2]
    median = statistics.median
    return (
        f"| {name} | {read / 1e9:.2f} GB | {written / 1e9:.2f} GB | {median(ours):.0f} MB/s ({min(ours):.0f} to {max(ours):.0f}) "
        f"| {median(raw):.0f} MB/s ({min(raw):.0f} to {max(raw):.0f}) | {median(ratios):.0%} | {memory / 1e6:.0f} MB | {largest / 1e6:.0f} MB |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="on the disk to be measured [default: the temporary folder]")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    print(f"# Exporting a model of 1 GB, beside copying it, {date.today()}\n")
    print(describe("paddlepaddle", "paddlenlp", "safetensors", "numpy") + f"; medians of {options.rounds} rounds\n")
    print("Speed is bytes read per second. Memory: the largest of all rounds, above the imports; mapped files count.\n")
    print("| weights | read | written | export | copy and fsync | ratio | memory | largest tensor |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.cases:
        with tempfile.TemporaryDirectory(dir=options.folder) as place:
            print(_measure(Path(place), name, options.rounds), flush=True)


if __name__ == "__main__":
    main()
