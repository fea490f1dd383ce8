"""Opens a saved program in paddle.inference on the CPU, with the threads and memory settings that short steps need.

The files are checked first, because Paddle reads weights whose last tensor is truncated without an error.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from paddle_llm.core.errors import UserError
from paddle_llm.parallel.process.environment import import_paddle, prepare_host

if TYPE_CHECKING:
    from paddle.inference import Predictor

_FLOAT32 = 5  # in Paddle's VarType; exports have no other type
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # from <linux/mman.h>; the second since Linux 6.1
_HUGE_PAGE = 2 << 20
_LARGE = 32 << 20  # bytes; smaller weights stay in the processor's cache


def open_program(program: Path, weights: Path, threads: int | None) -> Predictor:
    """Check the files of a program and return its predictor.

    Args:
        program: Path of the program.
        weights: Path of its weights.
        threads: Number of threads; None: OMP_NUM_THREADS, or the number of cores.

    Raises:
        UserError: If a file is truncated or unreadable.
    """
    for file, is_complete in ((program, _is_json), (weights, _has_complete_tensors)):
        try:
            if not is_complete(file):
                raise UserError(f"{file} is truncated or corrupt. Export the model again, or copy the file again.")
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}. Correct its permissions.") from None
    try:
        return _create_predictor(program, weights, threads)
    except RuntimeError as error:  # Paddle's message has many lines
        raise UserError(f"{program} cannot be loaded by paddle.inference: {error}. Export the model again.") from error


def _create_predictor(program: Path, weights: Path, threads: int | None) -> Predictor:
    threads = _prepare_process(threads)
    from paddle import inference

    config = inference.Config(str(program), str(weights))
    config.disable_gpu()
    config.disable_mkldnn()  # with oneDNN a step at batch size 1 took 1.7 times as long; it also prints to stdout
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(threads)
    predictor = inference.create_predictor(config)
    if weights.stat().st_size >= _LARGE:
        _use_huge_pages()
    return predictor


def _prepare_process(threads: int | None) -> int:
    """Set up the process before Paddle is imported, as training does, and return the number of threads."""
    if "paddle" not in sys.modules:
        # A step consists of hundreds of short operations. Threads that spin for a millisecond before they sleep save a
        # fifth of its time.
        os.environ.setdefault("KMP_BLOCKTIME", "1")
        prepare_host("cpu", threads)
        import_paddle()
        import paddle

        paddle.set_device("cpu")
    return threads or int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


# ---- memory ---------------------------------------------------------------------------------------------------------


def _use_huge_pages() -> None:
    """Request 2 MB pages for the large anonymous memory of this process, which is mainly the weights.

    At batch size 1, a step reads all weights once and mostly waits for memory. With 4 kB pages, address translation
    takes 5% of a step. Existing memory is moved at once (before Linux 6.1: in the background), and memory that is
    mapped there later uses such pages too. Systems without huge pages are not changed.
    """
    try:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        regions = list(_large_regions())
    except (OSError, AttributeError):
        return
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in regions:
        for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
            madvise(start, end - start, advice)  # an error means that the system refuses, which is harmless


def _large_regions() -> Iterator[tuple[int, int]]:
    """Yield the addresses of each large region of memory that is not a mapped file, rounded to whole huge pages."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, mode, _, _, inode, *name = line.split()
            start, end = (int(address, 16) for address in span.split("-"))
            start, end = -(-start // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
            if mode == "rw-p" and inode == "0" and name in ([], ["[heap]"]) and end - start >= _LARGE:
                yield start, end


# ---- files ----------------------------------------------------------------------------------------------------------


def _is_json(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_bytes()))
    except ValueError:
        return False


def _has_complete_tensors(file: Path) -> bool:
    """Return whether a .pdiparams file of float32 tensors ends with its last tensor, according to the headers."""
    size, end = file.stat().st_size, 0
    with open(file, "rb") as opened:
        while end < size:
            opened.seek(end)
            length = _next_tensor_size(opened)
            if length is None:
                return False
            end = opened.tell() + length
    return end == size


def _next_tensor_size(opened: BinaryIO) -> int | None:
    """Read the header of a tensor and return the bytes of its values; None if it is not that of a float32 tensor.

    The header has a version, the number of LoD levels (0), a version, the length of a TensorDesc, and that message:
    field 1 is the type, each field 2 a dimension, both varints.
    """
    head = opened.read(20)
    if len(head) < 20:
        return None
    *versions, length = struct.unpack("<IQIi", head)
    if any(versions) or not 0 < length < 1000:
        return None
    fields, number, shift = [], 0, 0
    for byte in opened.read(length):
        number, shift = number | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            fields.append(number)
            number = shift = 0
    return 4 * math.prod(fields[3::2]) if fields[:2] == [8, _FLOAT32] else None
