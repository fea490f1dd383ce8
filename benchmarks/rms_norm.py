"""RMSNorm on a CPU beside what memory allows, all in one run.

    python benchmarks/rms_norm.py [--threads 2] [--repeats 15] [--shapes 4096x4096,16384x1024] > benchmarks/results/rms_norm.md

Bare kernel: custom_ops/csrc through ctypes, on buffers that are warm. Its ceiling is the same number of bytes through a plain loop
that reads and writes as many streams (2 read, 1 written: the triad) or through memcpy, whichever is faster. Kernel and ceilings
take turns; every figure is the median. What does not fit into the last cache is timed on several sets of buffers in turn, so that no
run finds there what the one before it left. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from machine import describe

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "custom_ops"))

import rms_norm_native as native  # noqa: E402

SHAPES = "4096x4096,16384x1024,16384x2048,16384x4096,16384x8192,512x1024,64x4096"
TYPES = {"fp32": (native.FLOAT32, np.float32), "bf16": (native.BFLOAT16, np.uint16)}
EPSILON = 1e-6


@dataclass(frozen=True)
class Case:
    """One kernel's call: `inputs` matrices read and `outputs` written."""

    direction: str
    residual: bool
    inputs: int
    outputs: int


CASES = [
    Case("forward", False, 1, 1),
    Case("forward", True, 2, 2),
    Case("backward", False, 2, 1),
    Case("backward", True, 3, 1),
]


def buffer(rows: int, hidden: int, dtype: type) -> np.ndarray:
    """Zeros [rows, hidden] on a page's boundary, every page touched."""
    size = rows * hidden * np.dtype(dtype).itemsize
    raw = np.zeros(size + 4096, np.uint8)
    raw.fill(0)
    start = -raw.ctypes.data % 4096
    return raw[start : start + size].view(dtype).reshape(rows, hidden)


def fill(array: np.ndarray, seed: int) -> None:
    """Normal numbers, in bf16 where the array is of 16 bits (by cutting off, which is as good for a timing)."""
    rng = np.random.default_rng(seed)
    sample = rng.standard_normal(1 << 20, dtype=np.float32)
    if array.dtype == np.uint16:
        sample = (sample.view(np.uint32) >> 16).astype(np.uint16)
    flat = array.reshape(-1)
    for begin in range(0, flat.size, sample.size):
        part = flat[begin : begin + sample.size]
        part[:] = sample[: part.size]


class Bench:
    """The buffers of one shape and type, and what is timed on them."""

    def __init__(self, kernels: ctypes.CDLL, memory: ctypes.CDLL, threads: int, rows: int, hidden: int, name: str):
        self.kernels, self.memory, self.threads = kernels, memory, threads
        self.type, dtype = TYPES[name]
        self.shape = native.Shape(rows, hidden, EPSILON, self.type, self.type, native.ROUND_FP32)
        self.inputs = [buffer(rows, hidden, dtype) for _ in range(3)]
        self.outputs = [buffer(rows, hidden, dtype) for _ in range(2)]
        self.weight, self.dweight = buffer(1, hidden, dtype), buffer(1, hidden, dtype)
        self.invvar = buffer(rows, 1, np.float32)
        size = kernels.pllm_rms_norm_workspace_cpu(ctypes.byref(self.shape), 1)
        self.workspace = buffer(1, size, np.uint8)
        for seed, array in enumerate([*self.inputs, self.weight]):
            fill(array, seed)

    def kernel(self, case: Case) -> Callable[[], None]:
        shape, hidden, options = self.shape, self.shape.hidden, native.CpuOptions(self.threads, native.ISA_BEST)
        a, b, c = (array.ctypes.data for array in self.inputs)
        out, out2 = (array.ctypes.data for array in self.outputs)
        weight, invvar = self.weight.ctypes.data, self.invvar.ctypes.data
        if case.direction == "forward":
            extra = (b, hidden, weight, out2, hidden) if case.residual else (None, 0, weight, None, 0)
            args = native.Forward(shape, a, hidden, *extra, out, hidden, invvar)
            call = self.kernels.pllm_rms_norm_forward_cpu
        else:
            extra = (c, hidden) if case.residual else (None, 0)
            dweight, size = self.dweight.ctypes.data, self.workspace.size
            workspace = self.workspace.ctypes.data
            args = native.Backward(
                shape, b, hidden, a, hidden, weight, invvar, *extra, out, hidden, dweight, workspace, size
            )
            call = self.kernels.pllm_rms_norm_backward_cpu

        def run() -> None:
            code = call(ctypes.byref(args), ctypes.byref(options))
            assert code == 0, self.kernels.pllm_rms_norm_message(code)

        return run

    def ceilings(self, case: Case) -> list[tuple[Callable[[], None], float]]:
        """What moves bytes at memory's speed, with the factor that makes its bytes as many as the kernel's."""
        read = (ctypes.c_void_p * case.inputs)(*(array.ctypes.data for array in self.inputs[: case.inputs]))
        written = (ctypes.c_void_p * case.outputs)(*(array.ctypes.data for array in self.outputs[: case.outputs]))
        size = ctypes.c_int64(self.inputs[0].nbytes)
        to, source = (ctypes.c_void_p(array.ctypes.data) for array in (self.outputs[0], self.inputs[0]))
        return [
            (lambda: self.memory.memory_streams(read, case.inputs, written, case.outputs, size, self.threads), 1.0),
            (lambda: self.memory.memory_copy(to, source, size, self.threads), (case.inputs + case.outputs) / 2),
        ]


def seconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def medians(runs: list[Callable[[], None]], repeats: int) -> list[float]:
    """The median seconds of each, taking turns, after one turn that is not counted. What is short is repeated more often."""
    first = [seconds(run) for run in runs for _ in range(2)]
    repeats = max(repeats, min(300, int(0.2 / max(first))))
    turns = [[seconds(run) for run in runs] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*turns, strict=True)]


def in_turn(runs: list[Callable[[], None]], first: int) -> Callable[[], None]:
    """Does one of `runs` per call, from number `first` on."""
    turns = itertools.cycle(runs[first % len(runs) :] + runs[: first % len(runs)])
    return lambda: next(turns)()


def sets_of_buffers(moved: int, cache: int) -> int:
    """How many there must be so that none of them is in the cache when its turn comes: 1 where all is to stay there."""
    return 1 if moved < 2 * cache else math.ceil(8 * cache / moved)


def cache_of_machine() -> int:
    """Bytes of the last cache, the part of other cores in it included; 0 where Linux does not tell."""
    file = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return int(file.read_text().strip().removesuffix("K")) << 10 if file.is_file() else 0


def bare(threads: int, repeats: int, shapes: list[tuple[int, int]], names: list[str], folder: Path) -> list[str]:
    """The section of the bare kernel: a table's lines."""
    kernels = native.load_cpu(native.build_cpu(folder))
    library = folder / "memory.so"
    flags = ["-O3", "-fopenmp", "-fPIC", "-shared"]
    subprocess.run(["g++", *flags, str(HERE / "memory.cpp"), "-o", str(library)], check=True)
    memory = ctypes.CDLL(str(library))
    isa = kernels.pllm_rms_norm_cpu_isa_name(kernels.pllm_rms_norm_cpu_isa()).decode()
    cache = cache_of_machine() or kernels.pllm_rms_norm_cpu_cache()
    lines = [
        f"## Bare kernel ({isa}, {threads} threads, warm buffers)",
        "",
        "| type | shape | call | MiB moved | ceiling ms | kernel ms | kernel / ceiling |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        for rows, hidden in shapes:
            matrix = rows * hidden * np.dtype(TYPES[name][1]).itemsize
            sets = sets_of_buffers(2 * matrix, cache)
            benches = [Bench(kernels, memory, threads, rows, hidden, name) for _ in range(sets)]
            for case in CASES:
                streams, copies = zip(*(bench.ceilings(case) for bench in benches), strict=True)
                runs = [
                    [bench.kernel(case) for bench in benches],
                    [run for run, _ in streams],
                    [run for run, _ in copies],
                ]
                kernel, *found = medians([in_turn(each, first) for first, each in enumerate(runs)], repeats)
                ceiling = min(each * factor for each, (_, factor) in zip(found, benches[0].ceilings(case), strict=True))
                moved = matrix * (case.inputs + case.outputs) / 2**20
                call = case.direction + (" with residual" if case.residual else "")
                lines.append(
                    f"| {name} | {rows}x{hidden} | {call} | {moved:.0f} | {ceiling * 1e3:.3f} | {kernel * 1e3:.3f} | {kernel / ceiling:.2f} |"
                )
                print(lines[-1], file=sys.stderr, flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15, help="timings of each, at least")
    parser.add_argument("--shapes", default=SHAPES, help="ROWSxHIDDEN, separated by commas")
    parser.add_argument("--types", default="fp32,bf16")
    arguments = parser.parse_args()
    shapes = [(int(rows), int(hidden)) for rows, hidden in (shape.split("x") for shape in arguments.shapes.split(","))]
    with tempfile.TemporaryDirectory() as folder:
        lines = bare(arguments.threads, arguments.repeats, shapes, arguments.types.split(","), Path(folder))
    print(f"# RMSNorm, {date.today()}", "", describe("numpy"), "", *lines, sep="\n")


if __name__ == "__main__":
    main()
