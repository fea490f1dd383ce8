"""What a sentencepiece model file holds: pieces, scores and the normaliser, read by field numbers.

Not by sentencepiece's own generated module: that of 0.2.3 refuses the protobuf which visualdl needs. Numbers and
defaults are those of sentencepiece_model.proto (google/sentencepiece, v0.2.0).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from paddle_llm.core.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Piece:
    """A piece of the vocabulary; its place in the list is its id."""

    text: str
    score: float
    type: int


@dataclass
class SentencePieceModel:
    """A model as its file has it.

    Attributes:
        rules: the name of the rules of normalisation ("nmt_nfkc", "identity", ...).
        charsmap: these rules, compiled; empty: identity.
        add_dummy_prefix: a blank is put before every text.
        remove_extra_whitespaces: blanks at the ends are taken off, several become one.
        escape_whitespaces: a blank is written U+2581 in pieces.
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
        """The ids of all pieces of a type."""
        return [number for number, piece in enumerate(self.pieces) if piece.type == kind]


def read_model(path: Path) -> SentencePieceModel:
    """Read a model file.

    Raises:
        UserError: it is none, or of a kind (word, char) that no tokenizer.json can hold.
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
        raise UserError(f"{path}: not a sentencepiece model: {error}.") from error
    if not model.pieces:
        raise UserError(f"{path}: not a sentencepiece model: it has no pieces.")
    if model.model_type not in (UNIGRAM, BPE):
        raise UserError(
            f"{path}: a sentencepiece model of whole words or single characters; only unigram and bpe can be exported."
        )
    if model.whitespace_as_suffix:
        raise UserError(
            f"{path}: its blanks stand behind the words (treat_whitespace_as_suffix), which tokenizer.json cannot say."
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


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message: an int where it is a varint, else the bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind not in (_BYTES, _FIXED32, _FIXED64):
            raise ValueError(f"a field of wire type {kind} at byte {at}")
        length = {_FIXED32: 4, _FIXED64: 8}.get(kind)
        if length is None:
            length, at = _varint(data, at)
        if at + length > len(data):
            raise ValueError(f"it ends in the middle of a field, at byte {len(data)}")
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
