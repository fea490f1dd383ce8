"""Reads pieces, scores and normalizer of a sentencepiece model file by field numbers.

sentencepiece's own generated module is not used: that of 0.2.3 rejects the protobuf version that visualdl needs. Field
numbers and defaults are those of sentencepiece_model.proto (google/sentencepiece, v0.2.0).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddle_llm.core.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Piece:
    """A piece of the vocabulary; its index in the list is its id.

    Attributes:
        text: Text of the piece.
        score: Score; larger is better.
        type: SentencePiece.Type.
    """

    text: str
    score: float
    type: int


@dataclass
class SentencePieceModel:
    """Content of a model file.

    Attributes:
        pieces: Pieces by id.
        model_type: UNIGRAM or BPE.
        byte_fallback: Whether unknown characters are encoded as bytes.
        whitespace_as_suffix: Whether blanks are after words instead of before them.
        rules: Name of the normalization rules ("nmt_nfkc", "identity", ...).
        charsmap: Compiled normalization rules; empty for identity.
        add_dummy_prefix: Whether a blank is put before every text.
        remove_extra_whitespaces: Whether blanks at the ends are removed and repeated blanks are merged.
        escape_whitespaces: Whether a blank is written as U+2581 in pieces.
    """

    pieces: list[Piece] = field(default_factory=list)
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    whitespace_as_suffix: bool = False
    rules: str = ""
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True

    def ids_of(self, kind: int) -> list[int]:
        """Return the ids of all pieces of a type."""
        return [number for number, piece in enumerate(self.pieces) if piece.type == kind]


def read_model(path: Path) -> SentencePieceModel:
    """Read a model file.

    Raises:
        UserError: If it is not a model file, or of a type (word, char) that tokenizer.json cannot express.
    """
    model = SentencePieceModel()
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                model.pieces.append(_piece(value))
            elif number == 2:
                _read_trainer(model, value)
            elif number == 3:
                _read_normalizer(model, value)
    except (IndexError, TypeError, ValueError, struct.error) as error:
        raise UserError(f"{path}: not a sentencepiece model: {error}. Copy the file again.") from error
    if not model.pieces:
        raise UserError(f"{path}: not a sentencepiece model: it has no pieces. Copy the file again.")
    if model.model_type not in (UNIGRAM, BPE):
        raise UserError(
            f"{path}: unsupported sentencepiece model of words or characters. Use a unigram or BPE model for the export."
        )
    if model.whitespace_as_suffix:
        raise UserError(
            f"{path}: blanks are after words (treat_whitespace_as_suffix), which tokenizer.json cannot express. Use another model."
        )
    return model


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = value.decode()
        elif number == 2:
            score = struct.unpack("<f", value)[0]
        elif number == 3:
            kind = value
    return Piece(text, score, kind)


def _read_trainer(model: SentencePieceModel, data: bytes) -> None:
    for number, value in _fields(data):
        if number == 3:
            model.model_type = value
        elif number == 24:
            model.whitespace_as_suffix = bool(value)
        elif number == 35:
            model.byte_fallback = bool(value)


def _read_normalizer(model: SentencePieceModel, data: bytes) -> None:
    for number, value in _fields(data):
        if number == 1:
            model.rules = value.decode()
        elif number == 2:
            model.charsmap = value
        elif number == 3:
            model.add_dummy_prefix = bool(value)
        elif number == 4:
            model.remove_extra_whitespaces = bool(value)
        elif number == 5:
            model.escape_whitespaces = bool(value)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a message: an int for a varint, else bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind not in (_BYTES, _FIXED32, _FIXED64):
            raise ValueError(f"field of wire type {kind} at byte {at}")
        length = {_FIXED32: 4, _FIXED64: 8}.get(kind)
        if length is None:
            length, at = _varint(data, at)
        if at + length > len(data):
            raise ValueError(f"it ends within a field, at byte {len(data)}")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
