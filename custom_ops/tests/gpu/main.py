"""Builds, checks and times the CUDA kernels; see run.sh."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.helpers.gpu import results as gpu_results

PACKAGES = ("torch", "triton", "liger-kernel")
FILE = "custom_ops.json"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--no-checks", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("gpu_results"), metavar="FOLDER")
    parser.add_argument("--no-table", action="store_true")
    arguments = parser.parse_args()
    machine = gpu_results.card(), gpu_results.versions(*PACKAGES)
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    missing = why_not(nvcc)
    results = (
        [gpu_results.Result("custom_ops: all", "skipped", 0.0, *machine, missing)]
        if missing
        else run_all(nvcc, arguments, machine)
    )
    gpu_results.save(arguments.results / FILE, results)
    failed = any(one.result in gpu_results.FAILURES for one in results)
    if not arguments.no_table:
        gpu_results.main(arguments.results)
    if missing:
        print(missing, file=sys.stderr)
        return 2
    return int(failed)


def why_not(nvcc: str) -> str:
    """Return what the kernels' tests lack on this machine; "" if they can run."""
    try:
        import torch
    except ImportError as error:
        return f"needs a GPU and torch: {error}"
    if not torch.cuda.is_available():
        return f"needs a GPU: torch {torch.__version__} sees none"
    return "" if shutil.which(nvcc) else f"needs nvcc: {nvcc} is not a program. Set NVCC."


def run_all(nvcc: str, arguments: argparse.Namespace, machine: tuple[str, str]) -> list[gpu_results.Result]:
    """Build, check and time the kernels; each step is a row."""
    import rms_norm_native as native
    import torch
    from check import checks
    from device import Device

    architecture = "{}{}".format(*torch.cuda.get_device_capability())
    results: list[gpu_results.Result] = []

    def run(name: str, test: Callable[[], str | None]) -> bool:
        results.append(gpu_results.timed(f"custom_ops: {name}", test, *machine))
        print(f"{results[-1].test}: {results[-1].result} ({results[-1].seconds:.0f} s)")
        return results[-1].result == "passed"

    with tempfile.TemporaryDirectory() as folder:
        if run(f"build for sm_{architecture}", lambda: build(native, Path(folder), nvcc, architecture)):
            device = Device(Path(folder) / native.CUDA_LIBRARY)
            for name, check in [] if arguments.no_checks else checks(device, arguments.quick):
                run(name, check)
            if not arguments.no_times:
                run("times", lambda: times(device, arguments.quick, Path(folder)))
    return results


def build(native: ModuleType, folder: Path, nvcc: str, architecture: str) -> str:
    native.build_cuda(folder, nvcc, [architecture])
    return nvcc


def times(device: Any, quick: bool, folder: Path) -> str:
    """Time the kernels and those of other libraries, and return the table."""
    from peers import why_no_liger
    from times import table

    missing = why_no_liger(folder / "liger")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        fine = table(device, quick, with_liger=not missing)
    text = shown.getvalue() + (f"\nLiger is not timed: {missing}" if missing else "")
    print(text)
    if not fine:
        raise RuntimeError(f"a kernel of this package could not be timed\n{text}")
    return text


if __name__ == "__main__":
    sys.exit(main())
