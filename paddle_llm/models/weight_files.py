"""The weight files of a folder as one table of tensors, of which slices are read.

Reads safetensors (one file or several with an index) through a memory map, so that a slice costs its own pages only;
PaddleNLP's .pdparams (one or several with an index) likewise (`paddle_pickles.py`), or by Paddle itself, whole, one file at a
time, where they were written in a way of old; and, where that is allowed, torch's pickles (`torch_pickles.py`).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, TensorSpec, serialize_file

from paddle_llm.config.errors import UserError
from paddle_llm.models.paddle_pickles import PickledTensor, RefusedPickle, scan_paddle_pickle
from paddle_llm.models.torch_pickles import scan_torch_pickle

# bf16 has no numpy type: it is held as uint16 and widened when read.
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1"}
_NUMPY |= {"BOOL": "?", "U16": "<u2"}  # PaddleNLP writes bf16 as U16, a type that no weight has otherwise
# As numpy and paddle call what weights are stored in.
_WEIGHT_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U16": "bfloat16", "uint16": "bfloat16"}
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class _Entry:
    """Where one tensor is: its file, its dtype as the file spells it (numpy's name in .pdparams), and the bytes [begin, end) of the file.

    `strides`: in elements; None: row by row. `pickled`: where it is in a .pdparams that can be mapped.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0
    strides: tuple[int, ...] | None = None
    pickled: PickledTensor | None = None


class WeightFiles:
    """Tensors of a folder by name.

    Attributes:
        format: what safetensors' metadata say ("pt" for Hugging Face, "np" or "pd" for PaddleNLP), "pd" for .pdparams,
            "pt" for torch's pickles, None where the files say nothing.

    Args:
        allow_pickle: read torch's pickles, too, where there is nothing else.
        file: read this safetensors file of the folder alone.

    Raises:
        UserError: no weights in the folder, a file missing, cut off or corrupt, or a format that is not read.
    """

    def __init__(self, folder: Path, *, allow_pickle: bool = False, file: str | None = None):
        self.folder = folder
        self.format: str | None = None
        self._entries: dict[str, _Entry] = {}
        self._held: tuple[Path, dict[str, np.ndarray]] | None = None
        if file and not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}: it is not complete")
        scans = {".pdparams": self._scan_pdparams, ".bin": self._scan_torch_pickle}
        for one in [folder / file] if file else _weight_files(folder, allow_pickle):
            try:
                self._entries.update(scans.get(one.suffix, self._scan_safetensors)(one))
            except OSError as error:
                raise UserError(f"{one} cannot be read: {error.strerror or error}") from None

    def names(self) -> list[str]:
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """What a tensor is stored in: "float32", "bfloat16", "float16", or as its file spells a type that is no weight's."""
        stored = self._entries[name].dtype
        return _WEIGHT_DTYPES.get(stored, stored)

    def view(self, name: str) -> np.ndarray:
        """A whole tensor as it is stored, read-only and mapped into memory where the file allows it; bf16 as bits in uint16."""
        entry = self._entries[name]
        if entry.pickled is not None:
            return entry.pickled.view()
        if entry.file.suffix == ".pdparams":
            return self._pdparams(entry.file)[name]
        values = np.memmap(entry.file, np.uint8, "r")[entry.begin : entry.end].view(_NUMPY[entry.dtype])
        if entry.strides is None:
            return values.reshape(entry.shape)
        steps = tuple(stride * values.itemsize for stride in entry.strides)
        return np.lib.stride_tricks.as_strided(values, entry.shape, steps, writeable=False)

    def read(self, name: str, axis: int, start: int, stop: int) -> np.ndarray:
        """Entries [start, stop) along `axis`, bf16 widened to fp32, other types as they are stored."""
        whole = self.view(name)
        index = [slice(None)] * whole.ndim
        if index:
            index[axis] = slice(start, stop)
        part = whole[tuple(index)]
        if part.dtype == np.uint16:
            return (part.astype(np.uint32) << 16).view(np.float32)
        return np.array(part)

    def _scan_safetensors(self, file: Path) -> dict[str, _Entry]:
        header, offset = read_header(file)
        self.format = (header.pop("__metadata__", None) or {}).get("format", self.format)
        entries, size = {}, file.stat().st_size
        for name, tensor in header.items():
            try:
                begin, end = (offset + at for at in tensor["data_offsets"])
                shape, dtype = tuple(tensor["shape"]), tensor["dtype"]
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{file} is corrupt: its entry for {name} cannot be read; fetch the file again"
                ) from None
            if dtype not in _NUMPY:
                raise UserError(
                    f"{file}: {name} is stored as {dtype}, which is not read; use fp32, fp16 or bf16 weights"
                )
            if end > size:
                raise UserError(f"{file} is cut off: {size} bytes, {name} ends at {end}; fetch the file again")
            if end - begin != int(np.prod(shape)) * np.dtype(_NUMPY[dtype]).itemsize:
                raise UserError(f"{file} is corrupt: {name} has the wrong number of bytes; fetch the file again")
            entries[name] = _Entry(file, dtype, shape, begin, end)
        return entries

    def _scan_pdparams(self, file: Path) -> dict[str, _Entry]:
        self.format = "pd"
        try:
            found = scan_paddle_pickle(file)
        except RefusedPickle:
            raise
        except UserError:  # written in another way, which Paddle itself may know
            return {
                name: _Entry(file, value.dtype.name, tuple(value.shape)) for name, value in self._pdparams(file).items()
            }
        return {name: _Entry(file, one.dtype.name, one.shape, pickled=one) for name, one in found.items()}

    def _scan_torch_pickle(self, file: Path) -> dict[str, _Entry]:
        self.format = "pt"
        return {
            name: _Entry(file, one.dtype, one.shape, one.begin, one.end, one.strides)
            for name, one in scan_torch_pickle(file).items()
        }

    def _pdparams(self, file: Path) -> dict[str, np.ndarray]:
        """The tensors of one .pdparams; the file read last is held."""
        import paddle

        if self._held is None or self._held[0] != file:
            self._held = None
            try:
                state = paddle.load(str(file), return_numpy=True)
            except Exception as error:  # paddle raises anything here, by what the broken bytes say
                raise UserError(f"{file} cannot be read ({type(error).__name__}); it is cut off or corrupt") from error
            self._held = (file, {name: value for name, value in state.items() if isinstance(value, np.ndarray)})
        return self._held[1]


def _weight_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """The files that hold the folder's weights: safetensors before .pdparams before torch's pickles."""
    pickles = ("pytorch_model.bin",) if allow_pickle else ()
    for single in ("model.safetensors", "model_state.pdparams", *pickles):
        index = folder / f"{single}.index.json"
        if index.is_file():
            return _indexed_files(index)
        if (folder / single).is_file():
            return [folder / single]
    if any(folder.glob("model_state.tp*.pdparams")) or any(folder.glob("model_state.*pp*.pdparams")):
        raise UserError(
            f"{folder} holds the parts of one layout (model_state.tp..), not a model folder; take the merged model of that "
            "run, make one of it (paddle-llm export FOLDER --target hf OUT), or continue the run with --resume_from_checkpoint"
        )
    if any(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{folder} holds torch pickles (pytorch_model*.bin), a format that can carry code. To read them all the same give "
            "--allow_pickle (nothing but tensors is taken from them), or convert them to safetensors with Hugging Face's "
            "save_pretrained(..., safe_serialization=True)"
        )
    raise UserError(f"{folder} holds no weights (model.safetensors, model_state.pdparams, or either with an index)")


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of weight files ({error}); fetch it again") from None
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names; fetch the files again")
    return [index.parent / name for name in names]


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The JSON header of a safetensors file, and the byte where tensors begin."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = file.stat().st_size
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise UserError(f"{file} is no safetensors file, or cut off ({size} bytes); fetch the file again")
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            raise UserError(f"{file} is corrupt: its header is not JSON; fetch the file again") from None
    if not isinstance(header, dict):
        raise UserError(f"{file} is corrupt: its header is not a table; fetch the file again")
    return header, 8 + length


def write_safetensors(file: Path, tensors: dict[str, np.ndarray], *, format: str = "np") -> None:
    """A safetensors file. Paddle hands bfloat16 out as its bits in uint16, a type that no weight has otherwise.

    Args:
        format: what it says of itself: "pt" where torch's libraries look for that.

    Raises:
        OSError: the disk is full, or has another trouble (safetensors has an error of its own for that).
    """
    kept = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    specs = {
        key: TensorSpec(
            dtype="bfloat16" if value.dtype == np.uint16 else value.dtype.name,
            shape=list(value.shape),
            data_ptr=value.ctypes.data,
            data_len=value.nbytes,
        )
        for key, value in kept.items()
    }
    try:
        serialize_file(specs, file, metadata={"format": format})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number.group(1)), os.strerror(int(number.group(1))), str(file)) from None
