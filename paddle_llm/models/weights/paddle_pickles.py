"""PaddleNLP's `.pdparams`: where its tensors are, found without reading them and without running what the file says.

A .pdparams is one pickle of numpy arrays by name (paddle.save, protocol 4). Arrays above 64 KiB stand in it as plain bytes:
they are passed over, and mapped into memory when they are asked for, so that a file costs what is read of it. A pickle can
name any function to be called; here numpy's three for arrays are known, and any other one is refused.
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
    """Something that is not among `_KNOWN`."""


class RefusedPickle(UserError):
    """A pickle that names something else than tensors: nobody is to run it."""


@dataclass(frozen=True)
class PickledTensor:
    """One tensor of a file.

    Attributes:
        dtype: numpy's; bfloat16 is kept as its bits in uint16.
        order: "C" (row by row) or "F".
        data: its bytes, or those [begin, end) of the file.
    """

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    order: str
    data: bytes | range

    def view(self) -> np.ndarray:
        """The values, read-only; mapped into memory unless they are few."""
        if isinstance(self.data, bytes):
            values = np.frombuffer(self.data, self.dtype)
        else:
            values = np.memmap(self.file, np.uint8, "r")[self.data.start : self.data.stop].view(self.dtype)
        return values.reshape(self.shape, order=self.order)  # type: ignore[call-overload]


def scan_paddle_pickle(file: Path) -> dict[str, PickledTensor]:
    """The tensors of one file by name; what is no tensor is left out. Memory: nothing to speak of.

    Raises:
        RefusedPickle: it names something else than tensors.
        UserError: no file of paddle.save's, or cut off.
    """
    try:
        with file.open("rb") as stream:
            found = _Reader(stream).load()
            size = stream.seek(0, 2)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not weights by name")
        return {str(name): array.tensor(file, size) for name, array in found.items() if isinstance(array, _Array)}
    except _Forbidden as error:
        raise RefusedPickle(f"{file} is refused: {error}; weights need nothing of the kind") from None
    except (
        pickle.UnpicklingError,
        MemoryError,  # a damaged length
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
            f"{file} is no file of weights of PaddlePaddle's, or cut off ({error}); save it again"
        ) from None


class _Array:
    """What numpy's array is while the pickle is read: its description."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self, file: Path, size: int) -> PickledTensor:
        """Checked against the file's size."""
        _, shape, dtype, columns_first, data = self.state
        length = len(data)
        if dtype.hasobject or length != int(np.prod(shape)) * dtype.itemsize:
            raise ValueError(f"an array of {shape} has {length} bytes")
        if isinstance(data, range) and data.stop > size:
            raise ValueError(f"{size} bytes, an array ends at {data.stop}")
        return PickledTensor(file, dtype, tuple(shape), "F" if columns_first else "C", data)


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")  # the latter since numpy 2
_KNOWN: dict[tuple[str, str], Any] = {
    **{(module, "_reconstruct"): _Array for module in _NUMPY},
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): codecs.encode,  # how protocol 2 spells bytes
}


class _Reader(pickle._Unpickler):
    """Read the pickle without importing what it names; long byte strings become their range in the file."""

    # Attributes of the base class that its types do not mention.
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    _unframer: Any

    def __init__(self, stream: BinaryIO):
        super().__init__(stream)
        self._stream = stream

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise _Forbidden(f"its pickle asks for {module}.{name}")
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
