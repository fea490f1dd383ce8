"""Prepare the environment before Paddle is imported: math libraries, threads, memory pages, quiet start-up.

`import paddle` reads the environment once, so `prepare_host` must run before it. Values that the user has set are kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import TextIO

from paddle_llm.parallel.process.determinism import set_deterministic_environment

# Parameter numbers of mallopt (glibc malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEP_BYTES = 1 << 30

# CPU flags that MKL's kernels for AVX-512 need.
_AVX512 = frozenset(("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"))

# Warnings of paddle 3.3.1 and paddlenlp 3.0.0b4 about which a user can do nothing.
_UPSTREAM_NOISE = (
    r"(?s).*(ccache|Setuptools is replacing distutils|swiglu|method of <class '.*'> is patched|"
    r"the grad clip of original optimizer|pkg_resources|nccl reduce_avg|No shared comm will be constructed|"
    r"For pipeline parallel with sharding, the sharding overlap|Current global rank \d+ is not in group).*"
)

# A log line of every job with several ranks (paddle 3.3.1).
_USUAL_WARNING = "the grad clip of original optimizer will be changed"


def prepare_host(device: str, cpu_threads: int | None = None, deterministic: bool = False) -> list[str]:
    """Prepare the process for a device. Call it before Paddle is imported.

    Args:
        device: "cpu" or "gpu".
        cpu_threads: Number of threads (`--cpu_threads`); takes precedence over the environment.
        deterministic: Whether GPU kernels must give the same bits in every run (`--deterministic`); no effect on a CPU.

    Returns:
        Lines to report: what was set and how to override it.

    Raises:
        RuntimeError: If Paddle is imported already: the settings would have no effect.
    """
    if "paddle" in sys.modules:
        raise RuntimeError("prepare_host() must run before paddle is imported")
    warnings.filterwarnings("ignore", message=_UPSTREAM_NOISE)
    os.environ.setdefault("GLOG_minloglevel", "2")  # every process group would log its store
    if device != "cpu":
        return set_deterministic_environment() if deterministic else []
    hide_gpus(os.environ)
    notes = []
    cpu_type = mkl_cpu_type(read_cpuinfo())
    if cpu_type and "MKL_DEBUG_CPU_TYPE" not in os.environ:
        os.environ["MKL_DEBUG_CPU_TYPE"] = cpu_type
        notes.append(f"MKL_DEBUG_CPU_TYPE={cpu_type} (the wheel's MKL takes a slow path on AMD)")
    threads = cpu_threads or _requested_threads() or _fair_share()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("MKL_NUM_THREADS", str(threads))
    # Spinning OpenMP pools make every matmul after the first optimizer step several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    if _keep_memory_pages():
        notes.append("freed memory is kept for reuse")
    notes.insert(0, f"{threads} CPU thread{'s' * (threads > 1)} per rank (change: --cpu_threads N)")
    return ["CPU: " + "; ".join(notes)]


def hide_gpus(environment: MutableMapping[str, str]) -> None:
    """Hide all GPUs in the environment of a process on the CPU.

    A GPU build of Paddle initialises CUDA when it is imported, also in a job on the CPU. It would use memory of a GPU,
    and a process that is forked afterwards could not use CUDA.

    Args:
        environment: Environment to change.
    """
    environment["CUDA_VISIBLE_DEVICES"] = ""
    environment.pop("FLAGS_selected_gpus", None)  # set by the launcher if the variable was a list


def import_paddle() -> None:
    """Import Paddle without its warning about the OMP_NUM_THREADS of `prepare_host`; log warnings and errors only."""
    stream = _WithoutThreadWarning(sys.stderr)
    with contextlib.redirect_stderr(stream):  # type: ignore[type-var]
        import paddle  # noqa: F401
    for log in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(log, "handlers", ()):
            if getattr(handler, "stream", None) is stream:
                handler.setLevel(logging.WARNING)
                handler.addFilter(lambda record: _USUAL_WARNING not in str(record.msg))


class _WithoutThreadWarning(io.TextIOBase):
    """A stream that drops lines about OMP_NUM_THREADS.

    The loggers that Paddle creates when it is imported keep writing to it, so it passes all other lines on.
    """

    def __init__(self, stream: TextIO):
        self._stream, self._line = stream, ""

    def write(self, text: str) -> int:
        """Pass complete lines on."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if "OMP_NUM_THREADS" not in line:
                self._stream.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()


def read_cpuinfo() -> str:
    """Return /proc/cpuinfo; "" on another system than Linux."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def mkl_cpu_type(cpuinfo: str) -> str | None:
    """Return the MKL_DEBUG_CPU_TYPE with which MKL uses the vector instructions of an AMD processor; None for Intel.

    By default the MKL of Paddle's wheel (2019) uses SSE on AMD. 5 is AVX2. 7 is AVX-512 (Zen 4 and later): a LLaMA step
    of hidden size 512 in float32 takes 0.6 of the time with it.

    Args:
        cpuinfo: Content of /proc/cpuinfo.
    """
    if "AuthenticAMD" not in cpuinfo:
        return None
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return "7" if _AVX512.issubset(flags) else "5"


def _requested_threads() -> int | None:
    """Return the user's OMP_NUM_THREADS. Paddle's launcher sets 1 for every rank, so a 1 under it is not the user's."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    launched = "PADDLE_TRAINER_ID" in os.environ
    if not value.isdigit() or int(value) < 1 or (launched and value == "1"):
        return None
    return int(value)


def _fair_share() -> int:
    """Return this rank's share of the machine's cores."""
    ranks_here = int(os.environ.get("PADDLE_LOCAL_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // ranks_here)


def _keep_memory_pages() -> bool:
    """Let glibc keep freed memory: new pages cost about a tenth of a step. glibc does not read variables any more.

    Returns:
        Whether glibc accepted the settings.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        settings = ((_M_MMAP_THRESHOLD, _KEEP_BYTES), (_M_TRIM_THRESHOLD, _KEEP_BYTES), (_M_TOP_PAD, 1 << 26))
        return all(libc.mallopt(option, value) == 1 for option, value in settings)
    except (OSError, AttributeError):
        return False
