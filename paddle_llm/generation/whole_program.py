"""A saved program, opened when its files are whole: Paddle reads weights whose last tensor is cut off without a word."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

from paddle_llm.core.errors import UserError
from paddle_llm.generation.inference import open_program

_FLOAT32 = 5  # of Paddle's VarType; nothing else is exported


def open_whole_program(program: Path, weights: Path, threads: int | None) -> Any:
    """The predictor of a program; see `open_program`.

    Raises:
        UserError: a file is cut off or cannot be read.
    """
    for file, whole in ((program, _is_json), (weights, _has_whole_tensors)):
        try:
            if not whole(file):
                raise UserError(f"{file} is cut off or corrupt: export the model anew, or copy the file again")
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from None
    try:
        return open_program(program, weights, threads)
    except RuntimeError as error:  # Paddle's, of many lines
        raise UserError(f"{program} cannot be loaded by paddle.inference: export the model anew ({error})") from error


def _is_json(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_bytes()))
    except ValueError:
        return False


def _has_whole_tensors(file: Path) -> bool:
    """Whether a .pdiparams of float32 tensors ends where its last one does, by what the head of each says."""
    size, end = file.stat().st_size, 0
    with open(file, "rb") as opened:
        while end < size:
            opened.seek(end)
            length = _length_of_next(opened)
            if length is None:
                return False
            end = opened.tell() + length
    return end == size


def _length_of_next(opened: BinaryIO) -> int | None:
    """Read a tensor's head; the bytes of its values, None where it is none of a float32 tensor.

    Its head: version, levels of detail (none), version, length of a TensorDesc, that message: field 1 the type, field 2 a
    dimension, each a varint.
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
