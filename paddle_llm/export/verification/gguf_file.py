"""Reads a GGUF file back and compares it with its source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_llm.core.artifacts import GGUF
from paddle_llm.export.source.dtypes import converted
from paddle_llm.export.source.source import Source, Tensors
from paddle_llm.export.targets.gguf.tensors import (
    Q8_0,
    halved,
    interleaved,
    name_map,
    restored_values,
    rotary_heads,
    stored_values,
)
from paddle_llm.export.verification.compare import Finding
from paddle_llm.models.weights.names import hugging_face

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "Q8_0": Q8_0}
_IDS = ("bos", "eos", "eot", "unknown", "padding")


def lint_file(folder: Path) -> Iterator[str]:
    """Yield a message for each known mistake of a GGUF file that loads without an error and generates garbage."""
    try:
        reader = _open(folder)
    except (OSError, ValueError, KeyError, IndexError) as error:
        yield f"{GGUF} cannot be read: {error}. Export again."
        return
    architecture = _value(reader, "general.architecture")
    size, tokens = _value(reader, f"{architecture}.vocab_size"), len(_value(reader, "tokenizer.ggml.tokens") or [])
    if tokens != size:
        yield f"{GGUF} has {tokens} tokens, and its network {size} embeddings. Export again."
    for name in _IDS:
        number = _value(reader, f"tokenizer.ggml.{name}_token_id")
        if number is not None and not 0 <= number < tokens:
            yield f"{GGUF}: {name}_token_id {number} is outside the vocabulary of {tokens} tokens. Export again."


def context_length(folder: Path) -> int:
    """Return the largest number of positions of the network in the file."""
    reader = _open(folder)
    return int(_value(reader, f"{_value(reader, 'general.architecture')}.context_length"))


def of_weights(source: Source, folder: Path) -> Finding:
    """Compare every weight of the file with the one of the source, rounded to the type in the file."""
    stored, wrong = _weights(source, folder), []
    for name, there in stored.items():
        if there.tensor is None:
            wrong.append(f"{name} is missing")
            continue
        expected = _in_file(source, name, there.dtype)
        found = restored_values(_values(there.tensor, there.dtype), there.dtype).reshape(expected.shape)
        heads = rotary_heads(source, there.foreign)
        if not np.array_equal(halved(found, heads) if heads else found, expected, equal_nan=True):
            wrong.append(f"{name} differs")
    known = {one.tensor.name for one in stored.values() if one.tensor is not None} | {"rope_freqs.weight"}
    wrong += [
        f"{tensor.name} is not a weight of the model" for tensor in _open(folder).tensors if tensor.name not in known
    ]
    note = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    return Finding("gguf", f"{len(stored)} weights", passed=not wrong, note=note)


def stored_dtypes(source: Source, folder: Path) -> dict[str, str]:
    """Return the type of each weight in the file, by canonical name; float32 for q8_0, which `rounded` restores."""
    return {name: "float32" if there.dtype == Q8_0 else there.dtype for name, there in _weights(source, folder).items()}


def rounded(source: Source, folder: Path) -> Source:
    """Return the source with the values that remain of weights that are stored as q8_0."""
    quantised = {name for name, there in _weights(source, folder).items() if there.dtype == Q8_0}
    return replace(source, tensors=_Rounded(source, quantised)) if quantised else source


@dataclass(frozen=True)
class _Rounded:
    """The tensors of a source, where some have only the values that q8_0 can express."""

    source: Source
    quantised: set[str]

    @property
    def _tensors(self) -> Tensors:
        return self.source.tensors

    def names(self) -> list[str]:
        """Return the canonical names."""
        return list(self.source.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self.source.shape(name)

    def dtype(self, name: str) -> str:
        """Return the type of the values that `read` returns."""
        return "float32" if name in self.quantised else self.source.dtype(name)

    def read(self, name: str) -> np.ndarray:
        """Return the whole tensor."""
        if name not in self.quantised:
            return self.source.read(name)
        values = _in_file(self.source, name, Q8_0)
        transposed = hugging_face(self.source.family.name, name, len(self.source.shape(name))).transpose
        return values.T if transposed else values


@dataclass(frozen=True)
class _Stored:
    """A weight in the file.

    Attributes:
        foreign: Hugging Face's name.
        tensor: The tensor; None if it is missing.
    """

    foreign: str
    tensor: ReaderTensor | None

    @property
    def dtype(self) -> str:
        return _TYPES.get(self.tensor.tensor_type.name, "") if self.tensor is not None else "float32"


def _weights(source: Source, folder: Path) -> dict[str, _Stored]:
    """Return every weight of the source in the file, by canonical name."""
    names, tensors = name_map(source), {tensor.name: tensor for tensor in _open(folder).tensors}
    found = {}
    for name in source.names():
        foreign = hugging_face(source.family.name, name, len(source.shape(name))).name
        found[name] = _Stored(foreign, tensors.get(names.get_name(foreign, try_suffixes=(".weight", ".bias")) or ""))
    return found


def _in_file(source: Source, name: str, dtype: str) -> np.ndarray:
    """Return a weight of the source in Hugging Face's layout as fp32, rounded to a type of the file."""
    foreign = hugging_face(source.family.name, name, len(source.shape(name)))
    values = source.read(name)
    values = values.T if foreign.transpose else values
    plain = converted(np.ascontiguousarray(values), source.dtype(name), "float32" if dtype == Q8_0 else dtype, name)
    heads = rotary_heads(source, foreign.name) if dtype == Q8_0 else 0  # other types round each value alone
    if not heads:
        return restored_values(stored_values(plain, dtype), dtype)
    return halved(restored_values(stored_values(interleaved(plain, heads), dtype), dtype), heads)


def _values(tensor: ReaderTensor, dtype: str) -> np.ndarray:
    data: np.ndarray = tensor.data
    return data.view(np.uint16) if dtype == "bfloat16" else data


def _open(folder: Path) -> GGUFReader:
    from gguf import GGUFReader

    return GGUFReader(folder / GGUF)


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.fields.get(key)
    return field.contents() if field is not None else None
