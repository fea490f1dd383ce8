"""What this machine needs before paddle is imported: BLAS path, threads, memory pages, quiet start-up.

Every setting leaves the user's own word alone. `import paddle` reads the environment once, so `prepare_host` must run
first; it refuses to run after.
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
from typing import Any

from paddle_llm.parallel.process.determinism import set_deterministic_environment

# mallopt's parameter numbers (glibc malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEP_BYTES = 1 << 30

# What MKL's kernels for AVX-512 use.
_AVX512 = frozenset(("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"))

# Upstream's own housekeeping, which no user can act on (paddle 3.3.1, paddlenlp 3.0.0b4).
_UPSTREAM_NOISE = (
    r"(?s).*(ccache|Setuptools is replacing distutils|swiglu|method of <class '.*'> is patched|"
    r"the grad clip of original optimizer|pkg_resources|nccl reduce_avg|No shared comm will be constructed|"
    r"For pipeline parallel with sharding, the sharding overlap).*"
)


# Of each job of several ranks, in a log (paddle 3.3.1).
_USUAL_WARNING = "the grad clip of original optimizer will be changed"


def prepare_host(device: str, cpu_threads: int | None = None, deterministic: bool = False) -> list[str]:
    """Set the process up for `device` before paddle is imported.

    Args:
        device: "cpu" or "gpu".
        cpu_threads: the user's `--cpu_threads`; wins over everything.
        deterministic: `--deterministic`; on a CPU it has no effect.

    Returns:
        Lines to say once: what was set and how to override it.

    Raises:
        RuntimeError: paddle is already imported, so that nothing could take effect.
    """
    if "paddle" in sys.modules:
        raise RuntimeError("prepare_host() must run before paddle is imported")
    warnings.filterwarnings("ignore", message=_UPSTREAM_NOISE)
    os.environ.setdefault("GLOG_minloglevel", "2")  # every process group would tell of its store
    if device != "cpu":
        return set_deterministic_environment() if deterministic else []
    hide_cards(os.environ)
    said = []
    kind = mkl_cpu_type(processor())
    if kind and "MKL_DEBUG_CPU_TYPE" not in os.environ:
        os.environ["MKL_DEBUG_CPU_TYPE"] = kind
        said.append(f"MKL_DEBUG_CPU_TYPE={kind} (the wheel's MKL takes a slow path on AMD)")
    threads = cpu_threads or _threads_wished() or _fair_share()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("MKL_NUM_THREADS", str(threads))
    # Spinning OpenMP pools make every matmul after the first optimizer step several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    if _keep_memory_pages():
        said.append("freed memory is kept for reuse")
    said.insert(0, f"{threads} CPU thread{'s' * (threads > 1)} per rank (change: --cpu_threads N)")
    return ["CPU: " + "; ".join(said)]


def hide_cards(environment: MutableMapping[str, str]) -> None:
    """Hide all GPUs in an environment for a process on the CPU.

    A GPU build of Paddle asks CUDA for its devices when it is imported, whatever the device of the job is: it would take
    memory of a card, and a process that is forked afterwards cannot use CUDA.
    """
    environment["CUDA_VISIBLE_DEVICES"] = ""
    environment.pop("FLAGS_selected_gpus", None)  # the launcher's choice, where the variable had a list


def import_paddle() -> None:
    """Import paddle without its advice against the OMP_NUM_THREADS that `prepare_host` has just chosen, and with logs that
    tell what is wrong and not what is done."""
    stream = _WithoutAdvice(sys.stderr)
    with contextlib.redirect_stderr(stream):
        import paddle  # noqa: F401
    for log in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(log, "handlers", ()):
            if getattr(handler, "stream", None) is stream:
                handler.setLevel(logging.WARNING)
                handler.addFilter(lambda record: _USUAL_WARNING not in str(record.msg))


class _WithoutAdvice(io.TextIOBase):
    """A stream that leaves lines about OMP_NUM_THREADS out. The logs that Paddle sets up when it is imported write to it for as
    long as the process lives, so that it passes everything else on."""

    def __init__(self, stream: Any):
        self._stream, self._begun = stream, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if "OMP_NUM_THREADS" not in line:
                self._stream.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def processor() -> str:
    """What Linux says of this machine's processors; "" where it is not Linux."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def mkl_cpu_type(described: str) -> str | None:
    """The MKL_DEBUG_CPU_TYPE that makes the wheel's MKL (2019) use what an AMD processor has; None for Intel's, which it knows.

    Left to itself it takes SSE on AMD. 5: AVX2. 7: AVX-512 (Zen 4 and later): a LLaMA step of hidden size 512 in fp32 takes 0.6
    of the time with it.

    Args:
        described: /proc/cpuinfo.
    """
    if "AuthenticAMD" not in described:
        return None
    flags = next((line.split() for line in described.splitlines() if line.startswith("flags")), [])
    return "7" if _AVX512.issubset(flags) else "5"


def _threads_wished() -> int | None:
    """The user's OMP_NUM_THREADS. Paddle's launcher sets 1 for every rank, so under it a 1 is nobody's word."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    launched = "PADDLE_TRAINER_ID" in os.environ
    if not value.isdigit() or int(value) < 1 or (launched and value == "1"):
        return None
    return int(value)


def _fair_share() -> int:
    """This rank's part of the machine's cores."""
    ranks_here = int(os.environ.get("PADDLE_LOCAL_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // ranks_here)


def _keep_memory_pages() -> bool:
    """Tell glibc to keep freed blocks: fresh pages cost about a tenth of a step. Environment variables come too late."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        settings = ((_M_MMAP_THRESHOLD, _KEEP_BYTES), (_M_TRIM_THRESHOLD, _KEEP_BYTES), (_M_TOP_PAD, 1 << 26))
        return all(libc.mallopt(option, value) == 1 for option, value in settings)
    except (OSError, AttributeError):
        return False
