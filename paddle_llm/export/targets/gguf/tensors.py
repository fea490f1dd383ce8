"""The tensors of a GGUF file: names, order of rows, and types.

Names and types are those of the `gguf` package. llama.cpp keeps vectors (norms and biases) in fp32 and, in a file of type
q8_0, matrices whose rows are not a multiple of 32 values in f16 (llama.cpp, convert_hf_to_gguf.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_llm.export.source.dtypes import ITEM_SIZES, widened
from paddle_llm.export.source.source import Source
from paddle_llm.export.targets.hugging_face import planned
from paddle_llm.export.targets.shard_writer import PlannedTensor, blocks
from paddle_llm.families.spec import Gguf

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, TensorNameMap

Q8_0 = "q8_0"
_BLOCK, _BLOCK_BYTES = 32, 34  # values of a block of q8_0, and its size: an f16 scale and 32 signed bytes
_ROTARY = ("q_proj.weight", "k_proj.weight")


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as the file contains it.

    Attributes:
        name: Name in the file.
        source: The weight in Hugging Face's layout; its `dtype` is the type in the file, or float32 for q8_0.
        dtype: "float32", "bfloat16", "float16" or "q8_0".
        heads: Number of heads whose rows are reordered for interleaved RoPE; 0: none.
    """

    name: str
    source: PlannedTensor
    dtype: str
    heads: int

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        values = math.prod(self.source.shape)
        return values // _BLOCK * _BLOCK_BYTES if self.dtype == Q8_0 else values * ITEM_SIZES[self.dtype]

    def read(self) -> np.ndarray:
        """Return the values of the file: bfloat16 as uint16 bits, q8_0 as blocks of bytes."""
        values = np.concatenate(list(blocks(self.source))).reshape(self.source.shape)
        return stored_values(interleaved(values, self.heads) if self.heads else values, self.dtype)


def gguf_tensors(source: Source, dtype: str | None) -> list[GgufTensor]:
    """Return the tensors of a file in the order of the network.

    Args:
        source: The model.
        dtype: Type of the matrices; None: as stored.
    """
    names = name_map(source)
    return [_tensor(source, tensor, names, dtype) for tensor in planned(source, None)]


def _tensor(source: Source, tensor: PlannedTensor, names: TensorNameMap, dtype: str | None) -> GgufTensor:
    kind = dtype or tensor.stored
    if len(tensor.shape) == 1:
        kind = "float32"
    elif kind == Q8_0 and tensor.shape[-1] % _BLOCK:
        kind = "float16"
    name = names.get_name(tensor.name, try_suffixes=(".weight", ".bias"))
    if name is None:  # the specification of the family is wrong
        raise ValueError(f"{tensor.name} has no name in GGUF's architecture {facts_of(source).architecture}")
    plain = replace(tensor, dtype="float32" if kind == Q8_0 else kind)
    return GgufTensor(name, plain, kind, rotary_heads(source, tensor.name))


def facts_of(source: Source) -> Gguf:
    """Return how llama.cpp runs the family of a source, which the export has checked to be supported."""
    assert source.family.engines.gguf is not None
    return source.family.engines.gguf


def name_map(source: Source) -> TensorNameMap:
    """Return the map from Hugging Face's names to those of the file."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = facts_of(source).architecture
    key = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    return get_tensor_name_map(key, source.config.num_hidden_layers)


def rotary_heads(source: Source, name: str) -> int:
    """Return the number of heads of a weight whose rows are in another order in the file; 0 for every other weight."""
    if not facts_of(source).interleaves_rotary or not name.endswith(_ROTARY):
        return 0
    heads: int = source.config.num_attention_heads
    groups: int = getattr(source.config, "num_key_value_heads", None) or heads
    return heads if name.endswith(_ROTARY[0]) else groups


def interleaved(values_OI: np.ndarray, heads: int) -> np.ndarray:
    """Return a query or key matrix [heads * D, in] with rows (0, D/2, 1, D/2 + 1, ...) of each head."""
    rows, columns = values_OI.shape
    return values_OI.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def halved(values_OI: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows in Hugging Face's order; the reverse of `interleaved`."""
    rows, columns = values_OI.shape
    return values_OI.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def stored_values(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values as a file of a type contains them."""
    if dtype != Q8_0:
        return np.ascontiguousarray(values)
    from gguf import quantize

    found: np.ndarray = quantize(values, ggml_type(dtype))
    return found


def restored_values(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Return the fp32 values of a tensor of a file; the reverse of `stored_values`."""
    if dtype != Q8_0:
        return widened(stored)
    from gguf import dequantize

    found: np.ndarray = dequantize(stored, ggml_type(dtype))
    return found


def ggml_type(dtype: str) -> GGMLQuantizationType:
    """Return the `gguf` package's name of a type."""
    from gguf import GGMLQuantizationType as Kind

    return {"float32": Kind.F32, "bfloat16": Kind.BF16, "float16": Kind.F16, Q8_0: Kind.Q8_0}[dtype]


def rope_factors(scaling: dict[str, Any], theta: float, width: int) -> np.ndarray:
    """Return the divisors [D/2] of the rotary frequencies for RoPE of the type "llama3" (transformers, modeling_rope_utils.py).

    Args:
        scaling: `rope_scaling` of Hugging Face's config.json.
        theta: Base of the frequencies.
        width: D, size of a head.
    """
    frequencies = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    length, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = length * frequencies / (2 * np.pi)
    smooth = (turns - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(turns > high, 1.0, np.where(turns < low, factor, between)).astype(np.float32)
