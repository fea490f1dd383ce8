"""Reads and writes quantized linear layers in GPTQ's layout, which transformers, gptqmodel and vLLM read.

A layer `NAME` has four tensors in the files. A code is an unsigned number of b bits, and
weight[o, i] = scale[g, o] * (code[i, o] - zero[g, o]) with g = g_idx[i].

==============  ==================  ===================================================================================
`NAME.qweight`  int32 [I b / 32, O]  codes, packed along the inputs
`NAME.qzeros`   int32 [G, O b / 32]  zeros, packed along the outputs; minus 1 in the format `gptq`, as they are in `gptq_v2`
`NAME.scales`   float16 [G, O]       scales
`NAME.g_idx`    int32 [I]            group of each input
==============  ==================  ===================================================================================

Packed numbers are a stream of bits, lowest bit first: 8 numbers of 4 bits are one word, 32 numbers of 3 bits are three.
With 3 bits only `gptq_v2` is used: in the format `gptq` AutoGPTQ subtracts 1 from each zero, gptqmodel (4.2.5) another number from each word.

Shapes: I inputs, O outputs, G groups, N numbers to pack, W words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

BITS = (2, 3, 4, 8)
QWEIGHT, QZEROS, SCALES, G_IDX = "qweight", "qzeros", "scales", "g_idx"
PARTS = (QWEIGHT, QZEROS, SCALES, G_IDX)
CONFIG_KEY = "quantization_config"
_FORMATS = ("gptq", "gptq_v2")
_AMBIGUOUS_BITS = 3
_WORD = 32  # bits


@dataclass(frozen=True)
class GPTQSettings:
    """What a reader needs to know of `quantization_config`.

    Attributes:
        bits: Bits per weight: 2, 3, 4 or 8.
        group_size: Inputs per group; -1: one group.
        zero_offset: Number to add to a stored zero: 1 in the format `gptq`, 0 in `gptq_v2`.
    """

    bits: int
    group_size: int
    zero_offset: int

    def describe(self) -> str:
        """Return a description for messages: `GPTQ, 4 bits, groups of 128`."""
        groups = f"groups of {self.group_size}" if self.group_size > 0 else "one group per column"
        return f"GPTQ, {self.bits} bits, {groups}"


def read_settings(raw: Mapping[str, Any]) -> GPTQSettings | str | None:
    """Read the quantization of a config.json.

    Returns:
        The settings; a problem, if it is GPTQ that this program does not read; None, if it is not GPTQ.
    """
    found = raw.get(CONFIG_KEY)
    if not isinstance(found, dict) or found.get("quant_method") != "gptq":
        return None
    bits, group_size = found.get("bits"), found.get("group_size", -1)
    kind = found.get("checkpoint_format") or "gptq"
    if bits not in BITS:
        return f"{CONFIG_KEY}: gptq with bits = {bits!r}, readable are {', '.join(map(str, BITS))}"
    if not isinstance(group_size, int) or group_size == 0:
        return f"{CONFIG_KEY}: gptq with group_size = {group_size!r}"
    if kind not in _FORMATS or found.get("is_marlin_format"):
        return f"{CONFIG_KEY}: gptq with checkpoint_format = {kind!r}, readable are {', '.join(_FORMATS)}"
    if kind == "gptq" and bits == _AMBIGUOUS_BITS:
        return f"{CONFIG_KEY}: gptq with 3 bits and checkpoint_format = 'gptq', whose zeros programs store differently; readable is gptq_v2"
    if found.get("dynamic"):
        return f"{CONFIG_KEY}: gptq with other settings for some layers (dynamic)"
    if str(found.get("pack_dtype") or "int32") != "int32":
        return f"{CONFIG_KEY}: gptq with pack_dtype = {found['pack_dtype']!r}"
    return GPTQSettings(int(bits), group_size, zero_offset(kind))


def format_written(bits: int) -> str:
    """Return the format in which layers are written: `gptq`, which more programs read, where it is unambiguous."""
    return "gptq_v2" if bits == _AMBIGUOUS_BITS else "gptq"


def zero_offset(kind: str) -> int:
    """Return the number that a format subtracts from a zero."""
    return 1 if kind == "gptq" else 0


# ---- packing --------------------------------------------------------------------------------------------------------


def numbers_per_block(bits: int) -> int:
    """Return the count of which the number of packed numbers must be a multiple."""
    return _WORD // gcd(_WORD, bits)


def pack(numbers_NO: np.ndarray, bits: int) -> np.ndarray:
    """Pack unsigned numbers along the first axis into int32 words [W, O]; N must be a multiple of `numbers_per_block`."""
    block = numbers_per_block(bits)
    blocks = numbers_NO.reshape(-1, block, numbers_NO.shape[1])
    words = np.zeros((len(blocks), block * bits // _WORD, blocks.shape[2]), np.uint32)
    for number in range(block):
        word, shift = divmod(number * bits, _WORD)
        values = blocks[:, number].astype(np.uint32)
        words[:, word] |= values << np.uint32(shift)
        if shift + bits > _WORD:
            words[:, word + 1] |= values >> np.uint32(_WORD - shift)
    return words.reshape(-1, blocks.shape[2]).view(np.int32)


def unpack(words_WO: np.ndarray, bits: int) -> np.ndarray:
    """Return the numbers of packed words along the first axis as uint8 [N, O]."""
    block = numbers_per_block(bits)
    words = np.ascontiguousarray(words_WO).view(np.uint32).reshape(-1, block * bits // _WORD, words_WO.shape[1])
    numbers = np.empty((len(words), block, words.shape[2]), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for number in range(block):
        word, shift = divmod(number * bits, _WORD)
        values = words[:, word] >> np.uint32(shift)
        if shift + bits > _WORD:
            values |= words[:, word + 1] << np.uint32(_WORD - shift)
        numbers[:, number] = values & mask
    return numbers.reshape(-1, words.shape[2])


# ---- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedMatrix:
    """A linear layer in the files. `view` dequantizes it.

    Attributes:
        settings: Settings of the folder.
        read: Function that returns a tensor of the layer by the end of its name.
        has_groups: Whether the files contain g_idx; otherwise groups are consecutive inputs.
        shape: Shape [O, I] of the dequantized weight, as Hugging Face stores it.
    """

    settings: GPTQSettings
    read: Callable[[str], np.ndarray]
    has_groups: bool
    shape: tuple[int, ...]

    def view(self) -> np.ndarray:
        """Return the dequantized weight, float32 [O, I]. The product of code and scale is exact in float32."""
        settings, inputs = self.settings, self.shape[1]
        zeros_GO = unpack(self.read(QZEROS).T, settings.bits).T.astype(np.float32) + settings.zero_offset
        scales_GO = self.read(SCALES)
        if scales_GO.dtype == np.uint16:  # bits of bfloat16
            scales_GO = (scales_GO.astype(np.uint32) << 16).view(np.float32)
        size = settings.group_size if settings.group_size > 0 else inputs
        groups_I = self.read(G_IDX) if self.has_groups else np.arange(inputs) // size
        return dequantize(unpack(self.read(QWEIGHT), settings.bits), scales_GO, zeros_GO, groups_I).T


def dequantize(codes_IO: np.ndarray, scales_GO: np.ndarray, zeros_GO: np.ndarray, groups_I: np.ndarray) -> np.ndarray:
    """Return scale * (code - zero) in float32 [I, O]."""
    weight_IO = codes_IO.astype(np.float32)
    weight_IO -= zeros_GO.astype(np.float32)[groups_I]
    weight_IO *= scales_GO.astype(np.float32)[groups_I]
    return weight_IO


def shape_problem(shapes: Mapping[str, tuple[int, ...]], settings: GPTQSettings) -> str | None:
    """Return why the tensors of a layer do not fit together; None if they do.

    Args:
        shapes: Shape of each tensor by the end of its name; g_idx may be missing.
        settings: Settings of the folder.
    """
    missing = [part for part in PARTS[:3] if len(shapes.get(part, ())) != 2]
    if missing:
        return f"{missing[0]} is missing or not a matrix"
    inputs, outputs = shapes[QWEIGHT][0] * _WORD // settings.bits, shapes[QWEIGHT][1]
    size = settings.group_size if settings.group_size > 0 else inputs
    groups = -(-inputs // size)
    expected = {
        QZEROS: (groups, outputs * settings.bits // _WORD),
        SCALES: (groups, outputs),
        G_IDX: (inputs,),
    }
    for part, shape in expected.items():
        if part in shapes and shapes[part] != shape:
            return f"{part} has the shape {list(shapes[part])} instead of {list(shape)}"
    return None
