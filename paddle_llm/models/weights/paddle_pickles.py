"""Locate the tensors of PaddleNLP's `.pdparams` and `.pdopt` without reading them and without running code from the file.

A .pdparams is one pickle of numpy arrays by name (paddle.save, protocol 4). Arrays above 64 KiB are plain bytes in it,
which are skipped here and mapped into memory when they are read. A pickle can call any function by name. This module
defines numpy's functions for arrays and numbers, and `tuple`, and refuses any other name.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from paddle_llm.core.errors import UserError


class _Forbidden(pickle.UnpicklingError):
    """The pickle contains a name that is not in `_KNOWN`."""


class RefusedPickle(UserError):
    """The pickle contains something other than tensors; Paddle must not read it either."""


@dataclass(frozen=True)
class PickledTensor:
    """One tensor of a file.

    Attributes:
        file: File that contains it.
        dtype: numpy's type; bfloat16 is stored as bits in uint16.
        shape: Shape.
        order: "C" (row by row) or "F".
        data: Bytes of the values, or their range in the file.
    """

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    order: str
    data: bytes | range

    def view(self) -> np.ndarray:
        """Return the values, read-only; large ones are mapped into memory."""
        if isinstance(self.data, bytes):
            values = np.frombuffer(self.data, self.dtype)
        else:
            values = np.memmap(self.file, np.uint8, "r")[self.data.start : self.data.stop].view(self.dtype)
        return values.reshape(self.shape, order=self.order)  # type: ignore[call-overload]


def scan_paddle_pickle(file: Path) -> dict[str, PickledTensor]:
    """Return the tensors of one file by name; other values are ignored. Large arrays take no memory.

    Raises:
        RefusedPickle: If the file contains something other than tensors.
        UserError: If the file was not written by paddle.save or is cut off.
    """
    found = read_paddle_pickle(file)
    return {str(name): value for name, value in found.items() if isinstance(value, PickledTensor)}


def read_paddle_pickle(file: Path) -> dict[Any, Any]:
    """Return the content of one file, with a `PickledTensor` for each tensor. Large tensors take no memory.

    A tensor inside of a nested dict, which paddle.save stores as (name, values), is a `PickledTensor` too.

    Raises:
        RefusedPickle: If the file contains something other than tensors, numbers and text.
        UserError: If the file was not written by paddle.save or is cut off.
    """
    try:
        with file.open("rb") as stream:
            found = _Reader(stream).load()
            size = stream.seek(0, 2)
        if not isinstance(found, dict):
            raise ValueError(f"it contains a {type(found).__name__}, not weights by name")
        return {key: _located(value, file, size) for key, value in found.items()}
    except _Forbidden as error:
        raise RefusedPickle(f"{file} is refused: {error}, which weights do not need. Save the weights again.") from None
    except (
        pickle.UnpicklingError,
        MemoryError,  # a damaged length
        RecursionError,
        ValueError,
        EOFError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        OverflowError,
        struct.error,
    ) as error:
        raise UserError(
            f"{file} is not a file of PaddlePaddle weights, or is cut off ({error}). Save it again."
        ) from None


class _Array:
    """Description of a numpy array while the pickle is read."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self, file: Path, size: int) -> PickledTensor:
        """Return the tensor after checking it against the size of the file."""
        _, shape, dtype, columns_first, data = self.state
        length = len(data)
        if dtype.hasobject or length != int(np.prod(shape)) * dtype.itemsize:
            raise ValueError(f"an array of {shape} has {length} bytes")
        if isinstance(data, range) and data.stop > size:
            raise ValueError(f"{size} bytes, an array ends at {data.stop}")
        return PickledTensor(file, dtype, tuple(shape), "F" if columns_first else "C", data)


def _located(value: Any, file: Path, size: int) -> Any:
    """Return a value with a `PickledTensor` for each array, also in nested dicts and lists."""
    if isinstance(value, _Array):
        return value.tensor(file, size)
    if isinstance(value, dict):
        return {key: _located(one, file, size) for key, one in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], _Array):
        return value[1].tensor(file, size)
    if isinstance(value, list | tuple):
        return [_located(one, file, size) for one in value]
    return value


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    """Return a number of numpy as a number of Python."""
    if dtype.hasobject or not isinstance(data, bytes):
        raise ValueError("a number of an unknown type")
    return np.frombuffer(data, dtype)[0].item()


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")  # the latter since numpy 2
_KNOWN: dict[tuple[str, str], Any] = {
    **{(module, "_reconstruct"): _Array for module in _NUMPY},
    **{(module, "scalar"): _scalar for module in _NUMPY},
    ("builtins", "tuple"): tuple,
    ("__builtin__", "tuple"): tuple,  # protocol 2
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): codecs.encode,  # protocol 2 writes bytes with it
}


class _Reader(pickle._Unpickler):
    """Reads the pickle without importing the names in it; long byte strings become their range in the file."""

    # Attributes of the base class that its type stubs lack.
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    _unframer: Any

    def __init__(self, stream: BinaryIO):
        super().__init__(stream)
        self._stream = stream

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise _Forbidden(f"its pickle names {module}.{name}")
        return _KNOWN[(module, name)]

    def _take(self, width: int) -> None:
        length = int.from_bytes(self.read(width), "little")
        # Strings inside a frame are short and are read with it; long strings are between frames.
        if self._unframer.current_frame is not None:
            self.append(self.read(length))
            return
        begin = self._stream.tell()
        self._stream.seek(length, 1)
        self.append(range(begin, begin + length))

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BINBYTES[0]: lambda self: self._take(4),
        pickle.BINBYTES8[0]: lambda self: self._take(8),
    }
