"""A saved program in paddle.inference on the CPU: the process, its threads and its memory as short steps want them."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # of <linux/mman.h>; the second since Linux 6.1
_PAGE = 2 << 20
_LARGE = 32 << 20  # bytes; less of weights stays in a processor's cache


def open_program(program: Path, weights: Path, threads: int | None) -> Any:
    """The predictor of a program.

    Args:
        threads: of the arithmetic; None: the machine's cores, or OMP_NUM_THREADS.
    """
    threads = _prepare(threads)
    from paddle import inference

    config = inference.Config(str(program), str(weights))
    config.disable_gpu()
    config.disable_mkldnn()  # oneDNN took 1.7 times as long a step at batch 1, and prints on stdout
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(threads)
    predictor = inference.create_predictor(config)
    if weights.stat().st_size >= _LARGE:
        _use_huge_pages()
    return predictor


def _prepare(threads: int | None) -> int:
    """Set the process up before paddle is imported, as training does; returns the number of threads."""
    from paddle_llm.parallel.process.environment import import_paddle, prepare_host

    if "paddle" not in sys.modules:
        # A step is some hundred short operations: threads that wait a millisecond for the next one save a fifth of it.
        os.environ.setdefault("KMP_BLOCKTIME", "1")
        prepare_host("cpu", threads)
        import_paddle()
        import paddle

        paddle.set_device("cpu")
    return threads or int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def _use_huge_pages() -> None:
    """Ask for pages of 2 MB for all large anonymous memory that this process has: the weights, above all.

    At batch 1 a step reads all weights once, and waits for them most of the time; with pages of 4 kB a part of that is
    looking up where they are (5% of a step). What is there is moved at once (before Linux 6.1: by and by), what comes to
    lie there later is put into such pages. Where the system gives none, or is not Linux, everything stays as it is.
    """
    try:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        regions = list(_large_regions())
    except (OSError, AttributeError):
        return
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in regions:
        for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
            madvise(start, end - start, advice)  # an error is a no


def _large_regions() -> Iterator[tuple[int, int]]:
    """First and last address of whole huge pages in the heap and other memory that is no file's."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, mode, _, _, inode, *name = line.split()
            start, end = (int(address, 16) for address in span.split("-"))
            start, end = -(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE
            if mode == "rw-p" and inode == "0" and name in ([], ["[heap]"]) and end - start >= _LARGE:
                yield start, end
