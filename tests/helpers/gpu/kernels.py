"""Attention as on a GPU, on the Python layer: networks built as there, and functions in place of Paddle's kernels.

The functions check what the kernels of Paddle 3.3.1 require (`models/patches/shared/attention_kernels.py`) and compute the mathematics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import paddle
import paddle.nn.functional as F

from paddle_llm.models.patches.shared import attention_kernels, cpu_switch
from tests.helpers.models.networks import WRITERS, build


@dataclass
class Kernels:
    """Paddle's kernels on a card.

    Attributes:
        capability: Compute capability of the card.
        half: Whether the states are taken for 16-bit ones; a CPU has no kernels for those.
        calls: Names of the kernels in the order of their calls; "causal" and "masked" are `scaled_dot_product_attention`.
    """

    capability: tuple[int, int] = (9, 0)
    half: bool = True
    calls: list[str] = field(default_factory=list)

    def scaled_dot_product_attention(
        self,
        query: paddle.Tensor,
        key: paddle.Tensor,
        value: paddle.Tensor,
        attn_mask: paddle.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        training: bool = True,
    ) -> paddle.Tensor:
        self._check_states(query, key, value)
        batch, length, heads, _ = query.shape
        total = key.shape[1]
        assert not (is_causal and attn_mask is not None), "flash attention refuses a causal mask beside another one"
        assert not is_causal or length == total, "a causal mask is aligned at the first positions"
        if attn_mask is not None:
            assert attn_mask.dtype == query.dtype
            assert attn_mask.shape in ([batch, 1, length, total], [batch, heads, length, total])
            assert bool(attn_mask.isfinite().all()), "a hidden row becomes NaN"
        self.calls.append("causal" if is_causal else "masked" if attn_mask is not None else "full")
        seen = paddle.tril(paddle.ones([1, 1, length, total], dtype="bool")) if is_causal else None
        return softmax_attention(query, key, value, attn_mask, seen)

    def flashmask_attention(
        self,
        query: paddle.Tensor,
        key: paddle.Tensor,
        value: paddle.Tensor,
        startend_row_indices: paddle.Tensor,
        *,
        dropout: float = 0.0,
        causal: bool = False,
    ) -> paddle.Tensor:
        self._check_states(query, key, value)
        batch, length = query.shape[:2]
        assert self.half and self.capability >= (8, 0), "there is no such kernel"
        assert key.shape[1] == length and causal and not dropout
        assert startend_row_indices.dtype == paddle.int32 and startend_row_indices.shape == [batch, 1, length, 1]
        self.calls.append("flashmask")
        position = paddle.arange(length, dtype="int32")
        below = position.unsqueeze(1) < startend_row_indices.transpose([0, 1, 3, 2])
        return softmax_attention(query, key, value, None, below & (position.unsqueeze(1) >= position))

    def _check_states(self, query: paddle.Tensor, key: paddle.Tensor, value: paddle.Tensor) -> None:
        assert query.ndim == 4 and key.shape == value.shape
        assert query.dtype == key.dtype == value.dtype, "Paddle computes without a fused kernel"
        assert query.shape[0] == key.shape[0] and query.shape[2] % key.shape[2] == 0
        assert query.shape[3] == key.shape[3] <= 256 and query.shape[3] % 8 == 0


def softmax_attention(query: Any, key: Any, value: Any, added: Any, seen: Any) -> paddle.Tensor:
    """[B, S, N, D]: attention in its plainest form, with a mask that is added, and one of booleans."""
    repeats = query.shape[2] // key.shape[2]
    key, value = (states.repeat_interleave(repeats, axis=2) for states in (key, value))
    scores = paddle.einsum("bsnd,btnd->bnst", query, key) / math.sqrt(query.shape[-1])
    if added is not None:
        scores = scores + added
    if seen is not None:
        scores = paddle.where(seen, scores, paddle.full([1], -1e30))
    return paddle.einsum("bnst,btnd->bsnd", F.softmax(scores, axis=-1), value)


@contextmanager
def on_fake_gpu(kernels: Kernels) -> Iterator[None]:
    """Everything that asks for the device of a tensor hears of a GPU; the kernels are the given ones."""
    attention_kernels._device_has_flash_kernels.cache_clear()
    patches = [
        mock.patch.object(F, "scaled_dot_product_attention", kernels.scaled_dot_product_attention),
        mock.patch.object(F, "flashmask_attention", kernels.flashmask_attention),
        mock.patch.object(attention_kernels, "on_gpu", lambda tensor: True),
        mock.patch.object(attention_kernels, "in_16_bits", lambda *tensors: kernels.half),
        mock.patch.object(attention_kernels, "built_with_flash_kernels", lambda: True),
        mock.patch.object(paddle.device.cuda, "get_device_capability", lambda number=None: kernels.capability),
    ]
    with mock.patch.multiple("paddle_llm.models.patches.shared.packed_rows", on_gpu=lambda tensor: True):
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()
            attention_kernels._device_has_flash_kernels.cache_clear()


@contextmanager
def without_cpu_kernels() -> Iterator[None]:
    """PaddleNLP's own functions in place of the faster ones for CPUs."""
    enabled = cpu_switch.is_enabled()
    cpu_switch.disable()
    try:
        yield
    finally:
        if enabled:
            cpu_switch.enable()


def network(folder: Path, family: str, *, flash: bool, **fields: Any) -> Any:
    """A network of random weights as it is built on a GPU; inside `without_cpu_kernels`."""
    fields_of_config = {"init_std" if family == "opt" else "initializer_range": 0.2}
    if family in ("llama", "qwen2"):
        fields_of_config["num_key_value_heads"] = 2
    WRITERS[family](folder, **fields_of_config)
    with mock.patch.object(paddle.device, "get_device", lambda: "gpu:0"):
        return build(folder, length=32, use_flash_attention=flash, **fields)
