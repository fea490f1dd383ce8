"""Locate the tensors of torch's `pytorch_model.bin` without torch and without running code from the file.

A .bin is a zip archive with one pickle, which describes the tensors in the other entries of the archive (one per
storage, not compressed). A pickle can call any function by name. This module defines the few names that tensors need
and refuses any other name.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_llm.core.errors import UserError

# torch's storage classes -> names of dtypes in safetensors, bytes of an element.
_STORAGES = {
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "DoubleStorage": ("F64", 8),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}
_LOCAL_HEADER = 30


@dataclass(frozen=True)
class TorchTensor:
    """One tensor.

    Attributes:
        dtype: Name of the type in safetensors.
        shape: Shape.
        strides: Strides in elements.
        begin: Byte of the tensor's first element in the file.
        end: Byte after its storage.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    begin: int
    end: int


def scan_torch_pickle(file: Path) -> dict[str, TorchTensor]:
    """Return the tensors of one file by name; other values are ignored.

    Raises:
        UserError: If the file is not in torch's zip format (1.6), is cut off, or contains something other than tensors.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            (entry,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
            reader = _Reader(archive, entry.removesuffix("data.pkl"), file)
            found = reader.load()
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not a file of torch 1.6 or later, or is cut off ({error}). Fetch it again, or convert it to safetensors."
        ) from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{file} is refused: {error}, which weights do not need. Use safetensors.") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} contains a {type(found).__name__}, not weights by name. Save a state_dict.")
    return dict(_tensors(found))


def _tensors(found: dict[Any, Any]) -> Iterator[tuple[str, TorchTensor]]:
    for name, value in found.items():
        if isinstance(value, TorchTensor):
            yield str(name), value


@dataclass(frozen=True)
class _Storage:
    """One storage: bytes [begin, end) of the file."""

    dtype: str
    size: int
    begin: int
    end: int


class _Reader(pickle.Unpickler):
    """Reads the pickle without importing the names in it."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, file: Path):
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")), encoding="utf-8")
        self._archive, self._folder, self._file = archive, folder, file
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch", "Size"): tuple,
        }
        self._known |= {("torch", name): kind for name, kind in _STORAGES.items()}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"its pickle names {module}.{name}")
        return self._known[(module, name)]

    def persistent_load(self, saved: Any) -> _Storage:
        kind, (dtype, size), key, _, count = saved
        if kind != "storage":
            raise pickle.UnpicklingError(f"its pickle names a {kind}")
        entry = self._archive.getinfo(f"{self._folder}data/{key}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != count * size:
            raise ValueError(f"entry {entry.filename} is not {count} elements of {size} bytes")
        with self._file.open("rb") as stream:
            stream.seek(entry.header_offset)
            header = stream.read(_LOCAL_HEADER)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        begin = entry.header_offset + _LOCAL_HEADER + names
        return _Storage(dtype, size, begin, begin + entry.file_size)


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> TorchTensor:
    shape, strides = tuple(shape), tuple(strides)
    begin = storage.begin + offset * storage.size
    last = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if min((offset, *strides), default=0) < 0 or (0 not in shape and begin + (last + 1) * storage.size > storage.end):
        raise ValueError("a tensor ends after its storage")
    return TorchTensor(storage.dtype, shape, strides, begin, storage.end)
