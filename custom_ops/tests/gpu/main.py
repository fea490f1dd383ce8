"""See run.sh."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import rms_norm_native as native
import torch
from check import check_all
from device import NAMES, Device

SHAPES = [(16384, 1024), (16384, 2048), (16384, 4096), (16384, 8192), (16384, 16384), (4096, 4096)]
QUICK = [(16384, 4096), (16384, 8192)]


def milliseconds(run, repeats: int = 30) -> float:
    """The median, each timed by events of its own, after three that are not counted."""
    for _ in range(3):
        run()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in pairs:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def copy_bandwidth(bytes_moved: int) -> float:
    """Bytes per second of a copy on the device that reads and writes `bytes_moved` in all."""
    source = torch.empty(bytes_moved // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return bytes_moved / (milliseconds(lambda: target.copy_(source)) * 1e-3)


def graph_of(run):
    """Replays `run` from a CUDA graph, so that the host's time to launch does not count."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def ours(device: Device, x, residual, weight, dy, dsum) -> dict:
    """{what: (run, matrices moved)}."""
    y, dx, total = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    dweight, invvar = torch.empty_like(weight), torch.empty(x.shape[0], device="cuda")
    workspace = device.workspace(x, weight)

    def both() -> None:
        device.forward_into(x, weight, y, invvar)
        device.backward_into(dy, x, weight, invvar, dx, dweight, workspace)

    return {
        "forward": (lambda: device.forward_into(x, weight, y, invvar), 2),
        "forward + backward": (both, 5),
        "forward, residual": (lambda: device.forward_into(x, weight, y, invvar, residual, total), 4),
        "backward": (lambda: device.backward_into(dy, x, weight, invvar, dx, dweight, workspace), 3),
        "backward, residual": (lambda: device.backward_into(dy, x, weight, invvar, dx, dweight, workspace, dsum), 4),
    }


def of_torch(x, weight, dy, norm) -> dict:
    """`norm(x, weight)` of torch's autograd likewise."""
    leaf, w = x.detach().requires_grad_(), weight.detach().requires_grad_()
    return {
        "forward": (lambda: norm(x, weight), 2),
        "forward + backward": (lambda: torch.autograd.grad(norm(leaf, w), (leaf, w), dy), 5),
    }


def liger():
    """Liger's norm, or None where it cannot be imported."""
    try:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    except ImportError as missing:
        print(f"Liger is not timed: {missing}")
        return None
    # offset 0, LLaMA's casting; in_place=False: its default overwrites dy, which a repeated timing must not.
    return lambda x, w: LigerRMSNormFunction.apply(x, w, 1e-6, 0.0, "llama", False)


def times(device: Device, shapes: list[tuple[int, int]]) -> None:
    other = liger()
    print(f"\n| type | shape | what | ms | GB/s | of the copy of as many bytes |\n|{'---|' * 6}")
    for name in ("bf16", "fp32"):
        for rows, hidden in shapes:
            x, residual, dy, dsum = (torch.randn(rows, hidden, device="cuda").to(NAMES[name]) for _ in range(4))
            weight = torch.randn(hidden, device="cuda").to(NAMES[name])
            peers = {"ours": ours(device, x, residual, weight, dy, dsum)}
            peers["torch F.rms_norm"] = of_torch(
                x, weight, dy, lambda a, b, h=hidden: torch.nn.functional.rms_norm(a, (h,), b, 1e-6)
            )
            if other:
                peers["Liger"] = of_torch(x, weight, dy, other)
            for what in ("forward", "backward", "forward + backward", "forward, residual", "backward, residual"):
                for peer, timed in peers.items():
                    if what not in timed:
                        continue
                    run, moved = timed[what]
                    size = moved * x.numel() * x.element_size()
                    ms, bandwidth = milliseconds(graph_of(run)), copy_bandwidth(size)
                    print(
                        f"| {name} | {rows}x{hidden} | {peer}, {what} | {ms:.4f} | {size / ms / 1e6:.0f} | {size / ms * 1e3 / bandwidth:.0%} |"
                    )
            del x, residual, dy, dsum, peers
            torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--no-checks", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not torch.cuda.is_available() or not Path(nvcc).exists():
        print(
            f"needs nvcc (looked for {nvcc}) and a torch that sees a GPU (it does: {torch.cuda.is_available()})",
            file=sys.stderr,
        )
        return 2
    major, minor = torch.cuda.get_device_capability()
    print(f"{torch.cuda.get_device_name()}, sm_{major}{minor}, torch {torch.__version__}, {nvcc}")
    with tempfile.TemporaryDirectory() as folder:
        begin = time.time()
        path, _ = native.build_cuda(Path(folder), nvcc, [f"{major}{minor}"])
        print(f"built in {time.time() - begin:.0f} s")
        device = Device(path)
        if not arguments.no_checks:
            begin = time.time()
            print(f"{check_all(device, arguments.quick)} combinations are right ({time.time() - begin:.0f} s)")
        if not arguments.no_times:
            times(device, QUICK if arguments.quick else SHAPES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
