"""Compiles the CUDA sources for every architecture if nvcc exists. Tests that run on a GPU are in gpu/run.sh."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys

import pytest
import rms_norm_native as native

NVCC = os.environ.get("NVCC") or shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(
    NVCC is None, reason="no nvcc on the PATH and none named by NVCC: the CUDA sources are not compiled"
)


def kernels(output: str) -> dict[str, tuple[int, int]]:
    """Return the registers and spilled bytes of each kernel in the output of ptxas."""
    found = {}
    for part in output.split("Compiling entry function ")[1:]:
        spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        found[part.split("'")[1]] = (int(registers[1]), int(spilled[1]) + int(spilled[2]))
    return found


def check(tmp_path, architecture: str):
    """Compile the kernels, check their registers and return the library."""
    library, output = native.build_cuda(tmp_path, NVCC, [architecture])
    assert "warning" not in output, output
    found = kernels(output)
    for name, count in (("forward_in_registers", 15), ("backward_in_registers", 15), ("finish_dweight", 3)):
        assert len([each for each in found if name in each]) == count
    assert {name: each for name, each in found.items() if each[1]} == {}, "registers are spilled"
    # The launcher expects two blocks of 512 threads per multiprocessor.
    assert all(
        registers <= 64 for name, (registers, _) in found.items() if re.search(r"backward_in_registers.*Li[12]E", name)
    )
    loaded = ctypes.CDLL(str(library))
    assert (
        loaded.pllm_rms_norm_forward_cuda and loaded.pllm_rms_norm_backward_cuda and loaded.pllm_rms_norm_workspace_cuda
    )
    return library


@needs_nvcc
def test_compiles_without_spills(tmp_path):
    library = check(tmp_path, "90")
    # Without a GPU, the user gets CUDA's own message.
    asked = f"""
import pathlib, rms_norm_native as native
cuda = native.load_cuda(pathlib.Path({str(library)!r}))
code = cuda.pllm_rms_norm_workspace_cuda(native.Shape(4, 64, 1e-6, 0, 0, 0), 1)
print(code, cuda.pllm_rms_norm_message_cuda(-code).decode())
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(native.CSRC.parent)}
    done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    code, words = done.stdout.strip().split(" ", 1)
    assert int(code) < -1000 and re.search("CUDA driver|CUDA-capable", words), done.stdout


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["70", "75", "80", "86", "89", "100", "120"])
def test_compiles_for_every_architecture(tmp_path, architecture):
    if architecture not in native.cuda_architectures(NVCC):
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    check(tmp_path, architecture)
