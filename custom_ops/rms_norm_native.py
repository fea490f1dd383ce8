"""Compiles the kernels of csrc/ and declares the C interface csrc/rms_norm.h for ctypes, without Paddle and torch.

The build of `fused_ln`, the tests and the benchmarks use it.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from pathlib import Path

CSRC = Path(__file__).resolve().parent / "csrc"
CPU_SOURCES = [CSRC / f"rms_norm_{name}.cpp" for name in ("cpu", "cpu_portable", "cpu_avx2", "cpu_avx512")]
CUDA_LIBRARY = "librms_norm_cuda.so"
CUDA_SOURCES = [CSRC / "rms_norm_cuda.cu"]
# No contraction to fused multiply-adds, because the results would depend on the processor. No -march=native, because the
# instruction set is chosen at run time.
CPU_FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC"]

# -Xptxas -v prints the registers of each kernel; the tests check that none spills.
CUDA_FLAGS = ["-std=c++17", "-O3", "-Xptxas", "-v", "-Xcompiler", "-fPIC,-fvisibility=hidden"]

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
ROUND_FP32, ROUND_LLAMA = 0, 1
ISA_BEST, ISA_PORTABLE, ISA_AVX2, ISA_AVX512 = 0, 1, 2, 3
STORES_AUTO, STORES_CACHE, STORES_STREAM = 0, 1, 2


def compiler() -> list[str]:
    """Return the command of the C++ compiler: $CXX, else g++."""
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def build_cpu(folder: Path, flags: list[str] | None = None) -> Path:
    """Compile the CPU kernels to librms_norm_cpu.so. The files are compiled in parallel, since each takes seconds.

    Args:
        folder: Folder of the library.
        flags: Additional flags.

    Returns:
        Path of the library.

    Raises:
        RuntimeError: If the compilation fails; the message has the compiler's output.
    """
    command = [*compiler(), *CPU_FLAGS, *(flags or [])]
    objects = [folder / f"{source.stem}.o" for source in CPU_SOURCES]
    jobs = [
        subprocess.Popen([*command, "-c", str(source), "-o", str(target)], stderr=subprocess.PIPE, text=True)
        for source, target in zip(CPU_SOURCES, objects, strict=True)
    ]
    output = [job.communicate()[1] for job in jobs]
    library = folder / "librms_norm_cpu.so"
    if not any(job.returncode for job in jobs):
        link = [*command, "-shared", *map(str, objects), "-o", str(library)]
        done = subprocess.run(link, stderr=subprocess.PIPE, text=True, check=False)
        if not done.returncode:
            return library
        output = [done.stderr]
    raise RuntimeError(f"{command[0]} could not compile {CSRC}:\n{''.join(output)}")


def cuda_architectures(nvcc: str) -> list[str]:
    """Return the architectures that nvcc supports, of those that the kernels are written for: ["75", "80", ...]."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    written_for = ["70", "75", "80", "86", "89", "90", "100", "120"]
    return [each for each in written_for if f"compute_{each}" in listed.split()]


def build_cuda(folder: Path, nvcc: str, architectures: list[str]) -> tuple[Path, str]:
    """Compile the CUDA kernels to librms_norm_cuda.so.

    Args:
        folder: Folder of the library.
        nvcc: The compiler.
        architectures: Architectures in ascending order, such as ["80", "90"].

    Returns:
        Path of the library, and the output of ptxas.

    Raises:
        RuntimeError: If the compilation fails; the message has the end of the compiler's output.
    """
    library = folder / CUDA_LIBRARY
    targets = [word for each in architectures for word in ("-gencode", f"arch=compute_{each},code=sm_{each}")]
    newest = architectures[-1]  # also as PTX, for later GPUs
    targets += ["-gencode", f"arch=compute_{newest},code=compute_{newest}"]
    command = [nvcc, *CUDA_FLAGS, *targets, "-shared", *map(str, CUDA_SOURCES), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{nvcc} could not compile {CSRC}:\n{done.stderr[-4000:]}")
    return library, done.stderr


class Shape(ctypes.Structure):
    """`pllm_rms_norm_shape` of rms_norm.h."""

    _fields_ = [
        ("rows", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
        ("x_type", ctypes.c_int32),
        ("weight_type", ctypes.c_int32),
        ("rounding", ctypes.c_int32),
    ]


class Forward(ctypes.Structure):
    """`pllm_rms_norm_forward` of rms_norm.h."""

    _fields_ = [
        ("shape", Shape),
        ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("residual", ctypes.c_void_p),
        ("residual_stride", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("sum", ctypes.c_void_p),
        ("sum_stride", ctypes.c_int64),
        ("y", ctypes.c_void_p),
        ("y_stride", ctypes.c_int64),
        ("invvar", ctypes.c_void_p),
    ]


class Backward(ctypes.Structure):
    """`pllm_rms_norm_backward` of rms_norm.h."""

    _fields_ = [
        ("shape", Shape),
        ("dy", ctypes.c_void_p),
        ("dy_stride", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("invvar", ctypes.c_void_p),
        ("dsum", ctypes.c_void_p),
        ("dsum_stride", ctypes.c_int64),
        ("dx", ctypes.c_void_p),
        ("dx_stride", ctypes.c_int64),
        ("dweight", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_size", ctypes.c_int64),
    ]


class CpuOptions(ctypes.Structure):
    """`pllm_cpu_options` of rms_norm.h."""

    _fields_ = [("threads", ctypes.c_int32), ("isa", ctypes.c_int32), ("stores", ctypes.c_int32)]


def load_cpu(path: Path) -> ctypes.CDLL:
    """Load the library of the CPU kernels and declare the types of its functions."""
    library = ctypes.CDLL(str(path))
    options = ctypes.POINTER(CpuOptions)
    library.pllm_rms_norm_message.restype = ctypes.c_char_p
    library.pllm_rms_norm_cpu_isa_name.restype = ctypes.c_char_p
    library.pllm_rms_norm_cpu_cache.restype = ctypes.c_int64
    library.pllm_rms_norm_workspace_cpu.argtypes = [ctypes.POINTER(Shape), ctypes.c_int]
    library.pllm_rms_norm_workspace_cpu.restype = ctypes.c_int64
    library.pllm_rms_norm_forward_cpu.argtypes = [ctypes.POINTER(Forward), options]
    library.pllm_rms_norm_backward_cpu.argtypes = [ctypes.POINTER(Backward), options]
    return library


def load_cuda(path: Path) -> ctypes.CDLL:
    """Load the library of the CUDA kernels and declare the types of its functions."""
    library = ctypes.CDLL(str(path))
    library.pllm_rms_norm_message_cuda.restype = ctypes.c_char_p
    library.pllm_rms_norm_workspace_cuda.argtypes = [ctypes.POINTER(Shape), ctypes.c_int]
    library.pllm_rms_norm_workspace_cuda.restype = ctypes.c_int64
    library.pllm_rms_norm_forward_cuda.argtypes = [ctypes.POINTER(Forward), ctypes.c_void_p]
    library.pllm_rms_norm_backward_cuda.argtypes = [ctypes.POINTER(Backward), ctypes.c_void_p]
    return library
