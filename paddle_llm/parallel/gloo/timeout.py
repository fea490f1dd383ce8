"""Give gloo's collectives the timeout of the job instead of gloo's thirty seconds.

A rank that writes a checkpoint or builds an index for longer than that would end all other ranks. Paddle 3.3.1 has no
setter, so the field is written in memory: `CommContextManager::Get`, an exported function, returns the context. Every
step is checked against known values (rank, size, 30000 ms); if one differs, nothing is written.
"""

from __future__ import annotations

import ctypes
import os

import paddle

GLOO_DEFAULT_MS = 30_000
_GET = "_ZNK3phi11distributed18CommContextManager3GetERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
_HAS = "_ZNK3phi11distributed18CommContextManager3HasERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
_INSTANCE = "_ZZN3phi11distributed18CommContextManager11GetInstanceEvE8instance"
# gloo::Context: vtable, rank, size, base, two shared pointers, slot, and then the timeout.
_CONTEXT_OFFSET, _RANK_OFFSET, _TIMEOUT_OFFSET = 16, 8, 64


class _StdString(ctypes.Structure):
    """A short std::string of libstdc++: pointer to its own buffer, length, buffer."""

    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("buffer", ctypes.c_char * 16)]


def job_timeout_ms() -> int:
    """Return the milliseconds that a collective may wait: `PADDLE_PG_TIMEOUT`, by default half an hour."""
    return int(os.environ.get("PADDLE_PG_TIMEOUT", "1800000"))


def set_group_timeout(group_id: int, rank: int, size: int, milliseconds: int) -> bool:
    """Set the timeout of a group's collectives.

    Args:
        group_id: Number with which the group was created.
        rank: Rank of this process in the group, for the check.
        size: Number of ranks of the group, for the check.
        milliseconds: New timeout.

    Returns:
        Whether the timeout was set.
    """
    address = _timeout_address(group_id, rank, size)
    if address is None:
        return False
    field = ctypes.c_int64.from_address(address)
    if field.value != GLOO_DEFAULT_MS:
        return False
    field.value = milliseconds
    return True


def _timeout_address(group_id: int, rank: int, size: int) -> int | None:
    """Return the address of the timeout in the memory of a group's context; None if a check fails."""
    library = _library()
    if library is None:
        return None
    has, get = getattr(library, _HAS), getattr(library, _GET)
    has.restype, has.argtypes = ctypes.c_bool, [ctypes.c_void_p, ctypes.c_void_p]
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]
    manager = ctypes.addressof(ctypes.c_char.in_dll(library, _INSTANCE))
    key = _StdString(None, len(str(group_id)), str(group_id).encode())
    key.data = ctypes.addressof(key) + _StdString.buffer.offset
    if not has(manager, ctypes.byref(key)):
        return None
    communicator = get(manager, ctypes.byref(key))
    context = ctypes.c_void_p.from_address(communicator + _CONTEXT_OFFSET).value
    if not context or _ints(communicator + 8) != (rank, size) or _ints(context + _RANK_OFFSET) != (rank, size):
        return None
    return context + _TIMEOUT_OFFSET


def _ints(address: int) -> tuple[int, int]:
    return ctypes.c_int32.from_address(address).value, ctypes.c_int32.from_address(address + 4).value


def _library() -> ctypes.CDLL | None:
    path = os.path.join(os.path.dirname(paddle.__file__), "libs", "libphi_core.so")
    try:
        library = ctypes.CDLL(path)
        for symbol in (_GET, _HAS, _INSTANCE):
            ctypes.c_char.in_dll(library, symbol)
    except (OSError, ValueError):
        return None
    return library
