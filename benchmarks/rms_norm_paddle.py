"""RMSNorm through Paddle beside its peers, and what it does to a training step, on a CPU.

    python benchmarks/rms_norm_paddle.py [--threads 2] [--repeats 15] > benchmarks/results/rms_norm_paddle.md

Forward + backward of one [rows, hidden]: the bare kernels (through ctypes, on warm buffers), the operator in Paddle, torch's
F.rms_norm where torch can be imported, PaddleNLP's formula. In two settings, each in a process of its own: the allocator as
it comes, which gives large results fresh pages from the system each time, and pages kept, as the entry scripts do
(parallel/process/environment.py). A training step: LLaMA with the operator on and off, in turns, one process. All figures are medians.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from machine import describe

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "custom_ops")]

EPSILON = 1e-6
SHAPES, TYPES = "4096x4096,16384x1024", "fp32,bf16"
PEERS = ("bare kernel", "operator in Paddle", "torch F.rms_norm", "PaddleNLP's formula")
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8000,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}
STEPS = {512: 1376, 1024: 2752}  # hidden size: that of the MLP
SEQUENCE, BATCH = 512, 4


# ---- In a process of its own: one setting.


def prepare(threads: int, kept: bool) -> None:
    """The environment that the entry scripts make; without keeping pages, if so asked."""
    from paddle_llm.parallel.process import environment as host

    if not kept:
        host._keep_memory_pages = lambda: False
    host.prepare_host("cpu", threads)


def through_paddle(threads: int, repeats: int, rows: int, hidden: int, name: str) -> dict[str, float]:
    """Milliseconds of forward + backward of each peer, in turns."""
    from rms_norm import medians

    peers: dict[str, Callable[[], None]] = {"bare kernel": bare(threads, rows, hidden, name)}
    peers |= in_paddle(rows, hidden, name)
    try:
        import torch
    except ImportError:
        print("torch is not installed: one peer less", file=sys.stderr)
    else:
        torch.set_num_threads(threads)
        peers["torch F.rms_norm"] = in_torch(torch, rows, hidden, name)
    return dict(zip(peers, (1e3 * each for each in medians(list(peers.values()), repeats)), strict=True))


def bare(threads: int, rows: int, hidden: int, name: str) -> Callable[[], None]:
    from fused_ln import binding
    from rms_norm import CASES, Bench, native

    kernels = binding.library().parent / binding.KERNELS  # the very ones that the operator calls
    bench = Bench(native.load_cpu(kernels), ctypes.CDLL(None), threads, rows, hidden, name)
    forward, backward = (bench.kernel(case) for case in CASES if not case.residual)

    def run() -> None:
        forward()
        backward()

    return run


def in_paddle(rows: int, hidden: int, name: str) -> dict[str, Callable[[], None]]:
    import fused_ln
    import paddle

    dtype = {"fp32": "float32", "bf16": "bfloat16"}[name]
    x, dy = (paddle.randn([rows, hidden]).astype(dtype) for _ in range(2))
    weight, seed = paddle.ones([hidden], dtype), paddle.zeros([1])
    weight.stop_gradient = seed.stop_gradient = False
    assert not fused_ln.why_not("cpu"), fused_ln.why_not("cpu")

    def formula(x: Any) -> Any:
        """LlamaRMSNorm.forward of PaddleNLP 3.0.0b4."""
        variance = x.astype("float32").pow(2).mean(-1, keepdim=True)
        normed = paddle.rsqrt(variance + EPSILON) * x
        return (normed.astype(dtype) if dtype == "bfloat16" else normed) * weight

    class Above(paddle.autograd.PyLayer):
        """The layers above, which hand dy down. backward(dy) itself would copy dy first, as no network does."""

        @staticmethod
        def forward(ctx: Any, y: Any) -> Any:
            return paddle.zeros([1])

        @staticmethod
        def backward(ctx: Any, _: Any) -> Any:
            return dy

    class Below(paddle.autograd.PyLayer):
        """The layers below, which take dx. Of a tensor that is nobody's result Paddle would copy it, as it does in no network."""

        @staticmethod
        def forward(ctx: Any, _: Any) -> Any:
            return x.detach()

        @staticmethod
        def backward(ctx: Any, _: Any) -> Any:
            return paddle.zeros([1])

    def run(norm: Callable[[Any], Any]) -> None:
        Above.apply(norm(Below.apply(seed))).backward()
        weight.clear_gradient(set_to_zero=False)

    return {
        "operator in Paddle": lambda: run(lambda x: fused_ln.fused_rms_norm(x, weight, EPSILON)[0]),
        "PaddleNLP's formula": lambda: run(formula),
    }


def in_torch(torch: Any, rows: int, hidden: int, name: str) -> Callable[[], None]:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    x, dy = (torch.randn(rows, hidden).to(dtype) for _ in range(2))
    weight = torch.ones(hidden, dtype=dtype, requires_grad=True)
    x.requires_grad_()

    def run() -> None:
        torch.nn.functional.rms_norm(x, (hidden,), weight, EPSILON).backward(dy)
        x.grad = weight.grad = None

    return run


def training_step(hidden: int, steps: int) -> dict[str, float]:
    """Seconds of one step with the operator off and on, step by step in turns."""
    import paddle

    from paddle_llm.config.layout import Layout
    from paddle_llm.config.run_config import RunConfig
    from paddle_llm.models.build import build_model

    paddle.set_device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        config = LLAMA | {"hidden_size": hidden, "intermediate_size": STEPS[hidden]}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        run = RunConfig(model_name_or_path=folder, device="cpu", max_seq_length=SEQUENCE, use_fused_rms_norm=True)
        model = build_model(run, Layout(), dtype="float32")
    assert model.config.use_fused_rms_norm
    model.train()
    optimizer = paddle.optimizer.AdamW(learning_rate=1e-4, parameters=model.parameters())
    tokens = paddle.randint(0, LLAMA["vocab_size"], [BATCH, SEQUENCE + 1])
    taken: dict[str, list[float]] = {"off": [], "on": []}
    for step in range(steps):
        for name, times in sorted(
            taken.items(), reverse=step % 2 == 0
        ):  # each is the first of two as often as the other
            model.config.use_fused_rms_norm = name == "on"
            began = time.perf_counter()
            model(input_ids=tokens[:, :-1], labels=tokens[:, 1:])[0].backward()
            optimizer.step()
            optimizer.clear_grad()
            times.append(time.perf_counter() - began)
    return {name: statistics.median(times[2:]) for name, times in taken.items()}


# ---- The tables.


def child(*arguments: object) -> dict[str, float]:
    """This file in a process of its own, to do one thing in one setting."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(arguments, found, file=sys.stderr, flush=True)
    return found


def table_of_peers(options: argparse.Namespace) -> list[str]:
    ratios = ("x bare kernel", "torch / operator", "formula / operator")
    lines = ["| type | shape | pages | " + " | ".join([*(f"{peer} ms" for peer in PEERS), *ratios]) + " |"]
    lines.append("|---" * (3 + len(PEERS) + len(ratios)) + "|")
    for name in options.types.split(","):
        for shape in options.shapes.split(","):
            rows, hidden = (int(number) for number in shape.split("x"))
            for kept in (False, True):
                found = child("peers", options.threads, kept, options.repeats, rows, hidden, name)
                bare_ms, own, torch_ms, formula = (found.get(peer) for peer in PEERS)
                cells = [f"{value:.2f}" if value else "not installed" for value in (bare_ms, own, torch_ms, formula)]
                cells += [f"{own / bare_ms:.2f}", f"{torch_ms / own:.1f}" if torch_ms else "", f"{formula / own:.1f}"]
                setting = "kept" if kept else "as they come"
                lines.append(f"| {name} | {shape} | {setting} | " + " | ".join(cells) + " |")
    return lines


def table_of_steps(options: argparse.Namespace) -> list[str]:
    lines = ["| hidden | off, s | on, s | off / on |", "|---|---|---|---|"]
    for hidden in STEPS:
        found = child("step", options.threads, True, hidden, options.steps)
        off, on = found["off"], found["on"]
        lines.append(f"| {hidden} | {off:.3f} | {on:.3f} | {off / on:.3f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15, help="timings of each, at least")
    parser.add_argument("--steps", type=int, default=32, help="training steps of each kind; the first two do not count")
    parser.add_argument("--shapes", default=SHAPES, help="ROWSxHIDDEN, separated by commas")
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--only", choices=["peers", "steps"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        task, threads, kept, *rest = json.loads(options.child)
        prepare(threads, kept)
        print(json.dumps(through_paddle(threads, *rest) if task == "peers" else training_step(*rest)))
        return
    lines = [f"# RMSNorm through Paddle, {date.today()}", "", describe("paddlepaddle", "paddlenlp", "torch"), ""]
    if options.only != "steps":
        lines += [f"## Forward + backward, {options.threads} threads", "", *table_of_peers(options), ""]
    if options.only != "peers":
        title = f"## One training step: LLaMA, 4 layers, {BATCH} x {SEQUENCE} tokens, fp32, {options.threads} threads"
        lines += [title, "", *table_of_steps(options), ""]
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
