"""The header of a safetensors file: names, types, shapes and positions of its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.local_files.weights import unique_keys
from paddle_llm.core.downloads import HEAD_BYTES, failed_download
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json

# numpy has no bf16; it is stored as uint16 and widened when read.
NUMPY_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I8": "i1",
    "U8": "u1",
}
NUMPY_TYPES |= {"BOOL": "?", "U16": "<u2"}  # PaddleNLP writes bf16 as U16, a type that no weight has otherwise
# Bits of the other types of safetensors, which quantized folders contain.
_OTHER_BITS = {
    "U32": 32,
    "U64": 64,
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}
_OTHER_BITS |= {"F8_E4M3FN": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8}
_LARGEST_HEADER = 100_000_000


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the JSON header of a safetensors file and the position of the first tensor in bytes.

    Raises:
        UserError: If the file is not a safetensors file, is cut off or is corrupt.
    """
    with file.open("rb") as stream:
        if problem := failed_download(stream.read(HEAD_BYTES)):
            raise UserError(f"{file}: {problem}.")
        stream.seek(0)
        length = int.from_bytes(stream.read(8), "little")
        size = file.stat().st_size
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise UserError(f"{file} is not a safetensors file, or is cut off ({size} bytes). Fetch the file again.")
        try:
            header = parse_json(stream.read(length), object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            reason = str(error) if "occurs twice" in str(error) else "its header is not JSON"
            raise UserError(f"{file} is corrupt: {reason}. Fetch the file again.") from None
    if not isinstance(header, dict):
        raise UserError(f"{file} is corrupt: its header is not an object. Fetch the file again.")
    return header, 8 + length


def parse_entry(file: Path, name: str, tensor: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape and the bytes [begin, end) after the header of one entry of a header."""
    try:
        dtype, shape, (begin, end) = tensor["dtype"], tuple(tensor["shape"]), tensor["data_offsets"]
        numbers = (*shape, begin, end)
        if any(type(number) is not int or number < 0 for number in numbers) or begin > end or type(dtype) is not str:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file} is corrupt: its entry for {name} is invalid. Fetch the file again.") from None
    return dtype, shape, begin, end


def is_metadata(metadata: Any) -> bool:
    """Return whether safetensors' reader would accept the metadata."""
    return isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())


def bits_of(file: Path, name: str, dtype: str) -> int:
    """Return the bits of a number of a type.

    Raises:
        UserError: If safetensors does not have the type.
    """
    if dtype in NUMPY_TYPES:
        return 8 * np.dtype(NUMPY_TYPES[dtype]).itemsize
    if dtype not in _OTHER_BITS:
        raise UserError(f"{file}: {name} is stored as {dtype}, which is not supported. Use fp32, fp16 or bf16 weights.")
    return _OTHER_BITS[dtype]


def check_contiguous(file: Path, entries: dict[str, tuple[int, int]], offset: int, size: int) -> None:
    """Check that the tensors cover the file without a gap or an overlap, as safetensors' reader does.

    Args:
        file: The file, for messages.
        entries: Bytes [begin, end) of each tensor in the file, by name.
        offset: First byte after the header.
        size: Size of the file.

    Raises:
        UserError: If they do not.
    """
    expected = offset
    for name, (begin, end) in sorted(entries.items(), key=lambda item: item[1]):
        if begin != expected:
            raise UserError(
                f"{file} is corrupt: {name} does not begin at the end of the tensor before it. Fetch the file again."
            )
        expected = end
    if expected != size:
        raise UserError(f"{file} is corrupt: {size - expected} bytes follow the last tensor. Fetch the file again.")
