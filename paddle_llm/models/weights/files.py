"""Read slices of the tensors in the weight files of a folder.

Safetensors (one file, or several with an index) are mapped into memory, so that a slice costs only its own pages.
PaddleNLP's .pdparams (one, or several with an index) are mapped likewise (`paddle_pickles.py`); Paddle reads files of
older versions, one whole file at a time. Checkpoints of any layout are read by their index (`checkpoint_parts.py`), torch's
pickles if that is allowed (`torch_pickles.py`). Linear layers that GPTQ has quantized appear as their dequantized weights
(`gptq/format.py`).
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, TensorSpec, serialize_file

from paddle_llm.config.local_files.weights import WeightChoice, choose_weights
from paddle_llm.core.atomic_output import allow_readers
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.checkpoint_parts import SplitTensor, scan_checkpoint
from paddle_llm.models.weights.gptq.folder import find_packed, settings_of_folder
from paddle_llm.models.weights.gptq.format import PackedMatrix
from paddle_llm.models.weights.paddle_pickles import PickledTensor, RefusedPickle, scan_paddle_pickle
from paddle_llm.models.weights.safetensors_header import (
    NUMPY_TYPES,
    bits_of,
    check_contiguous,
    is_metadata,
    parse_entry,
    read_header,
)
from paddle_llm.models.weights.torch_pickles import scan_torch_pickle

# Names in numpy and Paddle of the types of weights.
_WEIGHT_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U16": "bfloat16", "uint16": "bfloat16"}
DOUBLE = ("F64", "float64")
_FLOATS = {"float32", "float16", "bfloat16", *DOUBLE}  # types of weights that are read; 64 bits become 32


@dataclass(frozen=True)
class _Entry:
    """Location of one tensor.

    Attributes:
        file: File that contains it.
        dtype: Type as the file names it (numpy's name in .pdparams).
        shape: Shape.
        begin: First byte in the file.
        end: Byte after the last one.
        strides: Strides in elements; None: row by row.
        located: Location in a .pdparams that can be mapped, or in a checkpoint, or the quantized layer.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0
    strides: tuple[int, ...] | None = None
    located: PickledTensor | SplitTensor | PackedMatrix | None = None


class WeightFiles:
    """Tensors of a folder by name.

    Attributes:
        format: Format in the metadata of safetensors ("pt" for Hugging Face, "np" or "pd" for PaddleNLP), "pd" for
            .pdparams, "pt" for torch's pickles; None if the files do not contain it.
        unread: Names of files in the folder that look like weights and are not read.
        copies: Tensors that a second file also contains; the index decides which copy is read.
        unlisted: Tensors that a file contains and the index does not name; they are not read.
        quantized: Description of the quantization, and bytes of the quantized layers in the files; None without one.

    Args:
        folder: Folder of the files.
        allow_pickle: Whether to read torch's pickles if the folder has nothing else.
        file: Name of the only safetensors file to read; None: all files.

    Raises:
        UserError: If the folder has no weights, a file is missing, cut off or corrupt, or a format is not supported.
    """

    def __init__(self, folder: Path, *, allow_pickle: bool = False, file: str | None = None):
        self.folder = folder
        self.format: str | None = None
        self.copies: set[str] = set()
        self.unlisted: set[str] = set()
        self._entries: dict[str, _Entry] = {}
        self._packed: dict[str, _Entry] = {}  # parts of quantized layers
        self._last_read: tuple[Path, dict[str, np.ndarray]] | None = None
        if file and not (folder / file).is_file():
            raise UserError(f"{folder} is incomplete: {file} is missing. Fetch or save the folder again.")
        choice = WeightChoice((folder / file,)) if file else choose_weights(folder, allow_pickle=allow_pickle)
        self.unread = choice.unread
        for one in choice.files:
            self._add(one, self._scan(one), choice.index)
        absent = sorted(name for name in choice.index or () if name not in self._entries)
        if absent and choice.index is not None and choice.index_file is not None:
            raise UserError(
                f"{choice.index_file} names {choice.index[absent[0]].name} for {absent[0]}, but that file does not contain it"
                + (f" ({len(absent)} tensors in total)" if len(absent) > 1 else "")
                + ". Fetch the index and its files again."
            )
        self.quantized: tuple[str, int] | None = None
        self._replace_packed()

    def _replace_packed(self) -> None:
        """Replace the tensors of layers that GPTQ has quantized with the dequantized weights."""
        settings = settings_of_folder(self.folder)
        if settings is None:
            return
        packed = find_packed(self.folder, self, settings)
        nbytes = 0
        for name, (matrix, parts) in packed.items():
            entry = self._entries[parts[0]]
            for part in parts:
                nbytes += self._entries[part].end - self._entries[part].begin
            self._packed.update({part: self._entries.pop(part) for part in parts})
            self._entries[name] = _Entry(entry.file, "F32", matrix.shape, located=matrix)
        if packed:
            self.quantized = (settings.describe(), nbytes)

    def _scan(self, file: Path) -> dict[str, _Entry]:
        scans = {".pdparams": self._scan_pdparams, ".bin": self._scan_torch_pickle, ".json": self._scan_checkpoint}
        try:
            return scans.get(file.suffix, self._scan_safetensors)(file)
        except OSError as error:
            raise UserError(
                f"cannot read {file}: {error.strerror or error}. Check the file and its permissions."
            ) from None

    def _add(self, file: Path, found: dict[str, _Entry], index: dict[str, Path] | None) -> None:
        """Keep the tensors for which the index names this file."""
        for name, entry in found.items():
            if index is None or index.get(name) == file:
                self._entries[name] = entry
            elif name in index:
                self.copies.add(name)
            else:
                self.unlisted.add(name)

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._entries)

    def packed_names(self) -> list[str]:
        """Return the names of the weights that are quantized in the files."""
        return [name for name, entry in self._entries.items() if isinstance(entry.located, PackedMatrix)]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """Return the stored type: "float32", "bfloat16", "float16", or the file's name of another type."""
        stored = self._entries[name].dtype
        return _WEIGHT_DTYPES.get(stored, stored)

    def is_weight(self, name: str) -> bool:
        """Return whether a tensor has floating-point numbers of 16 bits or more, as weights that are not quantized."""
        return self.dtype(name) in _FLOATS

    def view(self, name: str) -> np.ndarray:
        """Return a whole tensor as stored, read-only and mapped into memory if possible.

        bf16 is returned as bits in uint16.
        """
        entry = self._entries[name] if name in self._entries else self._packed[name]
        if entry.located is not None:
            return entry.located.view()
        if entry.file.suffix == ".pdparams":
            return self._pdparams(entry.file)[name]
        if entry.dtype not in NUMPY_TYPES:
            raise UserError(
                f"{entry.file}: {name} is stored as {entry.dtype}, which is not supported. Use fp32, fp16 or bf16 weights."
            )
        values = np.memmap(entry.file, np.uint8, "r")[entry.begin : entry.end].view(NUMPY_TYPES[entry.dtype])
        if entry.strides is None:
            return values.reshape(entry.shape)
        steps = tuple(stride * values.itemsize for stride in entry.strides)
        return np.lib.stride_tricks.as_strided(values, entry.shape, steps, writeable=False)

    def read(self, name: str, axis: int, start: int, stop: int) -> np.ndarray:
        """Return entries [start, stop) along `axis`; bf16 is widened to fp32, other types are returned as stored."""
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
        metadata = header.pop("__metadata__", None)
        if metadata is not None and not is_metadata(metadata):
            raise UserError(f"{file} is corrupt: its __metadata__ is not an object of strings. Fetch the file again.")
        if metadata is not None:
            self.format = metadata.get("format", self.format)
        entries, size = {}, file.stat().st_size
        for name, tensor in header.items():
            dtype, shape, begin, end = parse_entry(file, name, tensor)
            if offset + end > size:
                raise UserError(
                    f"{file} is cut off: it has {size} bytes, but {name} ends at {offset + end}. Fetch the file again."
                )
            if 8 * (end - begin) != math.prod(shape) * bits_of(file, name, dtype):
                raise UserError(f"{file} is corrupt: {name} has the wrong number of bytes. Fetch the file again.")
            entries[name] = _Entry(file, dtype, shape, offset + begin, offset + end)
        check_contiguous(file, {name: (entry.begin, entry.end) for name, entry in entries.items()}, offset, size)
        return entries

    def _scan_pdparams(self, file: Path) -> dict[str, _Entry]:
        self.format = "pd"
        try:
            found = scan_paddle_pickle(file)
        except RefusedPickle:
            raise
        except UserError:  # a file of an older version, which Paddle may be able to read
            return {
                name: _Entry(file, value.dtype.name, tuple(value.shape)) for name, value in self._pdparams(file).items()
            }
        return {name: _Entry(file, one.dtype.name, one.shape, located=one) for name, one in found.items()}

    def _scan_checkpoint(self, file: Path) -> dict[str, _Entry]:
        self.format = "np"
        return {name: _Entry(file, one.dtype, one.shape, located=one) for name, one in scan_checkpoint(file).items()}

    def _scan_torch_pickle(self, file: Path) -> dict[str, _Entry]:
        self.format = "pt"
        return {
            name: _Entry(file, one.dtype, one.shape, one.begin, one.end, one.strides)
            for name, one in scan_torch_pickle(file).items()
        }

    def _pdparams(self, file: Path) -> dict[str, np.ndarray]:
        """Return the tensors of one .pdparams; the file that was read last stays in memory."""
        import paddle

        if self._last_read is None or self._last_read[0] != file:
            self._last_read = None
            try:
                state = paddle.load(str(file), return_numpy=True)
            except Exception as error:  # Paddle raises many types for corrupt bytes
                raise UserError(
                    f"cannot read {file} ({type(error).__name__}): it is cut off or corrupt. Fetch the file again."
                ) from error
            if not isinstance(state, dict):
                raise UserError(f"{file} contains a {type(state).__name__}, not weights by name. Fetch the file again.")
            self._last_read = (file, {name: value for name, value in state.items() if isinstance(value, np.ndarray)})
        return self._last_read[1]


def is_finite(values: np.ndarray) -> bool:
    """Return whether an array of weights has neither NaN nor infinity; bf16 may be given as bits in uint16.

    The array is read in pieces, so that a mapped tensor needs little memory.
    """
    rows = values if values.ndim > 1 else values.reshape(-1, 1)
    step = max((1 << 22) // max(rows[:1].size, 1), 1)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        finite = (part & 0x7F80) != 0x7F80 if part.dtype == np.uint16 else np.isfinite(part)
        if not finite.all():
            return False
    return True


def write_safetensors(file: Path, tensors: dict[str, np.ndarray], *, format: str = "np") -> None:
    """Write a safetensors file. An array of uint16 holds the bits of bfloat16, as Paddle returns them.

    Args:
        file: Path of the file.
        tensors: Arrays by name.
        format: Format in the metadata; libraries of torch require "pt".

    Raises:
        OSError: If the file cannot be written; safetensors raises another type.
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
    allow_readers(file)  # safetensors creates files with mode 0600
