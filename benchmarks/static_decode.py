"""Tokens per second of greedy decoding on a CPU: the static export, our loop over PaddleNLP's network, PaddleNLP's own
`generate`, and transformers on torch.

    python benchmarks/static_decode.py [--peer_python PYTHON] [--rounds 5] > benchmarks/results/static_decode.md

PYTHON has torch and transformers; without it this one must. The same random LLaMA (hidden 512, 8 layers, vocabulary 32,000)
reads prompts of 64 tokens and writes 128 more, which nothing ends; float32, two threads. Each side is a process of its own
that stays, asked in turn, so that all of them see the same machine; the first round is left out. PaddleNLP's `generate` runs
as its user starts it, with that number of threads, and once more with our settings of the processor before Paddle is imported.
torch's threads wait passively, as those of these settings do, or it would lose to other work on the machine.
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

from paddle_llm.parallel.process.environment import mkl_cpu_type, read_cpuinfo

LLAMA = SHAPE | {"num_hidden_layers": 8, "vocab_size": 32000, "initializer_range": 0.05, "eos_token_id": 2}
PROMPT, NEW, BATCHES = 64, 128, (1, 8)
Generate = Callable[[np.ndarray], list[list[int]]]


def prompts(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(4, LLAMA["vocab_size"], (batch, PROMPT))


# ---- the model, for everybody ---------------------------------------------------------------------------------------


def write_models(folder: Path) -> None:
    """The same weights as Hugging Face's folder, PaddleNLP's, and a static export."""
    from paddle_llm.generation.network import start_process

    start_process("cpu")
    import paddle
    from safetensors.numpy import save_file

    from paddle_llm.config.layout import Layout
    from paddle_llm.config.run_config import RunConfig
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.targets.static.program import save_step_program
    from paddle_llm.export.targets.static.weights import StepWeights
    from paddle_llm.models.build import build_model
    from paddle_llm.models.weights.names import canonical_parameters, hugging_face

    hf, paddlenlp, static = (folder / name for name in ("hf", "paddlenlp", "static"))
    for place in (hf, paddlenlp, static):
        place.mkdir()
    (hf / "config.json").write_text(json.dumps(LLAMA))
    model = build_model(RunConfig(model_name_or_path=str(hf), seed=1, device="cpu"), Layout(), dtype="float32")
    with paddle.no_grad():
        model.lm_head.weight[:, LLAMA["eos_token_id"]] = 0.0  # never the likeliest: nothing ends
    tensors = {}
    for name, value in canonical_parameters(model, "llama"):
        there = hugging_face("llama", name, value.ndim)
        tensors[there.name] = np.ascontiguousarray(value.numpy().T if there.transpose else value.numpy())
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(str(paddlenlp))
    paddle.save(model.state_dict(), str(paddlenlp / "model_state.pdparams"))
    source = open_source(hf)
    weights = StepWeights(source)
    save_step_program(weights, static)
    from paddle_llm.export.targets.static.target import describe_step

    (static / "step.json").write_text(json.dumps(describe_step(source, weights.plan)))


# ---- the sides, each in a process of its own ------------------------------------------------------------------------


def static_export(folder: Path) -> Generate:
    from paddle_llm.generation.static_network import StaticModel

    return _by_decode(StaticModel(folder / "static"))


def our_dygraph(folder: Path) -> Generate:
    from paddle_llm.generation.network import start_process

    start_process("cpu")
    from paddle_llm.config.layout import Layout
    from paddle_llm.config.run_config import RunConfig
    from paddle_llm.models.build import build_model

    run = RunConfig(model_name_or_path=str(folder / "hf"), continue_training=True, device="cpu")
    return _by_decode(build_model(run, Layout(), dtype="float32"))


def _by_decode(model: Any) -> Generate:
    from paddle_llm.generation.decoding.decode import decode
    from paddle_llm.generation.eval_mode import generating
    from paddle_llm.generation.options import DecodeOptions
    from paddle_llm.models.prompt import Prompt

    def run(ids_BS: np.ndarray) -> list[list[int]]:
        batch = [Prompt(ids.tolist()) for ids in ids_BS]
        with generating(model):
            return decode(model, batch, [NEW] * len(batch), DecodeOptions("llama", {LLAMA["eos_token_id"]}))

    return run


def paddlenlp_generate(folder: Path) -> Generate:
    import paddle
    from paddlenlp.transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(str(folder / "paddlenlp"), dtype="float32")
    model.eval()

    def run(ids_BS: np.ndarray) -> list[list[int]]:
        with paddle.no_grad():
            found, _ = model.generate(
                paddle.to_tensor(ids_BS),
                attention_mask=paddle.ones(ids_BS.shape, "int64"),
                position_ids=paddle.arange(PROMPT).expand(ids_BS.shape),
                max_new_tokens=NEW,
                decode_strategy="greedy_search",
                eos_token_id=LLAMA["eos_token_id"],
                pad_token_id=0,
                bos_token_id=1,
            )
        return found.tolist()

    return run


def transformers_generate(folder: Path) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "hf", torch_dtype=torch.float32)
    model.eval()

    def run(ids_BS: np.ndarray) -> list[list[int]]:
        ids = torch.tensor(ids_BS)
        with torch.no_grad():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0
            )
        return found[:, PROMPT:].tolist()

    return run


class Side(NamedTuple):
    """What is measured: what makes its function, the packages whose versions matter, the environment."""

    open: Callable[[Path], Generate]
    packages: tuple[str, ...]
    environment: dict[str, str]


_PADDLE = ("paddlepaddle", "paddlenlp")
_TUNED = {
    "MKL_DEBUG_CPU_TYPE": mkl_cpu_type(read_cpuinfo()) or "",
    "MKL_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
}
STATIC, OURS, NLP, NLP_TUNED, TORCH = (
    "static export, paddle.inference",
    "our loop, PaddleNLP's network",
    "PaddleNLP's generate",
    "PaddleNLP's generate, our settings of the processor",
    "transformers' generate on torch",
)
SIDES = {
    STATIC: Side(static_export, ("paddlepaddle",), {}),
    OURS: Side(our_dygraph, _PADDLE, {}),
    NLP: Side(paddlenlp_generate, _PADDLE, {}),
    NLP_TUNED: Side(paddlenlp_generate, _PADDLE, _TUNED),
    TORCH: Side(transformers_generate, ("torch", "transformers"), {"OMP_WAIT_POLICY": "PASSIVE"}),
}


def work(name: str, folder: Path) -> None:
    """Answer batch sizes on stdin with what they took, until there are no more."""
    side = SIDES[name]
    run = side.open(folder)
    print("RESULT", json.dumps(", ".join(f"{package} {version(package)}" for package in side.packages)), flush=True)
    for line in sys.stdin:
        ids_BS = prompts(int(line))
        start, used = time.perf_counter(), time.process_time()
        tokens = run(ids_BS)
        took = [time.perf_counter() - start, time.process_time() - used]
        print("RESULT", json.dumps({"took": took, "tokens": tokens}), flush=True)


# ---- the comparison -------------------------------------------------------------------------------------------------


class Worker:
    """A side's process."""

    def __init__(self, name: str, python: str, folder: Path):
        ours = ("OMP_NUM_THREADS", *_TUNED)
        kept = {key: value for key, value in os.environ.items() if key not in ours}
        self._process = subprocess.Popen(
            [python, "-W", "ignore", __file__, "--side", name, "--folder", str(folder)],
            env=kept | {"OMP_NUM_THREADS": "2"} | SIDES[name].environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.versions = self._heard()

    def __call__(self, batch: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(batch, file=self._process.stdin, flush=True)
        return self._heard()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _heard(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.split(" ", 1)[1])
        sys.exit(f"a side has ended: {self._process.args}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options.side, Path(options.folder))
        return
    found: dict[tuple[str, int], list[dict[str, Any]]] = {(name, batch): [] for name in SIDES for batch in BATCHES}
    with tempfile.TemporaryDirectory() as temporary:
        write_models(Path(temporary))
        pythons = {TORCH: options.peer_python}
        workers = {name: Worker(name, pythons.get(name, sys.executable), Path(temporary)) for name in SIDES}
        for number in range(options.rounds + 1):
            for batch in BATCHES:
                for name, worker in workers.items():
                    result = worker(batch)
                    if number:
                        found[name, batch].append(result)
                    speed = batch * NEW / result["took"][0]
                    print(f"round {number}: batch {batch}: {name}: {speed:.1f} tokens/s", file=sys.stderr, flush=True)
        for worker in workers.values():
            worker.end()
    report(found, {name: worker.versions for name, worker in workers.items()}, options.rounds)


def report(found: dict[tuple[str, int], list[dict[str, Any]]], versions: dict[str, str], rounds: int) -> None:
    """The page."""
    print(f"# Greedy decoding on a CPU, {date.today()}\n")
    print(f"{describe()}; load of the machine at the end: {os.getloadavg()[1]:.1f} over five minutes\n")
    for name, said in versions.items():
        print(f"- {name}: {said}")
    print(
        f"\nLLaMA hidden {LLAMA['hidden_size']}, {LLAMA['num_hidden_layers']} layers, vocabulary {LLAMA['vocab_size']}, float32, two "
        f"threads: prompts of {PROMPT} tokens and {NEW} new ones, the prompts' reading included. Interleaved rounds: {rounds}, in each of which every side "
        "has its turn; medians, and the best round. Ratios are those of the static export to the side, by medians.\n"
    )
    for batch in BATCHES:
        first = found[STATIC, batch]
        print(f"## Batch {batch}\n")
        print(
            "| | tokens/s (median) | tokens/s (best) | static / this | processor s | its tokens equal |\n|---|---|---|---|---|---|"
        )
        for name in SIDES:
            results = found[name, batch]
            speeds = [batch * NEW / result["took"][0] for result in results]
            ratio = statistics.median(one["took"][0] for one in results) / statistics.median(
                one["took"][0] for one in first
            )
            processor = statistics.median(result["took"][1] for result in results)
            same = _equal(results[0]["tokens"], first[0]["tokens"])
            print(
                f"| {name} | {statistics.median(speeds):,.1f} | {max(speeds):,.1f} | {ratio:.2f} | {processor:.2f} | {same} |"
            )
        print()


def _equal(ours: list[list[int]], theirs: list[list[int]]) -> str:
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)}"


if __name__ == "__main__":
    main()
