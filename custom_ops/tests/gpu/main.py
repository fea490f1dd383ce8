"""See run.sh."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import rms_norm_native as native
import torch
from check import check_all
from device import Device
from peers import why_no_liger
from times import table


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--no-checks", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not torch.cuda.is_available() or not shutil.which(nvcc):
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
            count, left_out = check_all(device, arguments.quick)
            print(f"{count} combinations are right ({time.time() - begin:.0f} s)")
            if left_out:
                print(f"Not checked, for want of the card's memory: {', '.join(left_out)}")
        if not arguments.no_times:
            missing = why_no_liger(Path(folder) / "liger")
            if missing:
                print(f"Liger is NOT TIMED: {missing}")
            if not table(device, arguments.quick, with_liger=not missing):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
