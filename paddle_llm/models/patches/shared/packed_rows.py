"""Packed rows: several samples in one row, without attention between them.

Inputs of a batch
    input_ids, labels  [B, S]
    segment_lengths    [B, K] int64: lengths of a row's samples in order, followed by zeros. The rest of the row is
                       padding (labels -100).
    position_ids       [B, S] int64, from 0 in each sample; computed here if absent.
Without `segment_lengths` a row is one sample. Padding on its right then needs no mask, because no token with a loss
sees it. Padding on its left needs an `attention_mask` [B, S] of zeros and ones.

The attention receives `sample_ends` [B, S] int32: for each position the index after the last position of its sample.
FlashMask (Wang et al. 2024) calls it the start of a column's masked rows, PaddleNLP `attn_mask_startend_row_indices`.
Like any other tensor it passes through layers, recompute and pipeline stages, so that micro-batches are not confused.

ChatGLM-6B and GLM read a prefix in both directions. Their batches also have `prefix_lengths` [B, K], and their mask is
full.

Cost: on a CPU, attention is computed sample by sample (adjacent samples of less than 128 tokens together, with one
small mask). A GPU in 16 bits uses FlashMask's kernel, which skips hidden blocks (`attention_kernels.py` lists the
GPUs). Flash attention with ALiBi uses an S x S mask in 16 bits. In 32 bits, on older GPUs, and on a CPU with dropout of
attention probabilities, all S x S scores are computed.

Shapes: B rows, S positions of a row, K samples of a row, N heads, D head width.
"""

from __future__ import annotations

import math
from typing import Any

import paddle
import paddle.nn.functional as F

from paddle_llm.models.patches.shared.attention_kernels import (
    fused_attention,
    has_flash_kernels,
    on_gpu,
    repeated_heads,
)
from paddle_llm.models.patches.shared.cpu_attention import MIN_BLOCK, CausalAttention


def sample_ends(lengths_BK: paddle.Tensor, length: int) -> paddle.Tensor:
    """Return `sample_ends` [B, S] of rows of `length` positions; padding is a separate sample."""
    after_BK = lengths_BK.astype("int64").cumsum(axis=1)
    rows = after_BK.shape[0]
    position_BS = paddle.arange(length, dtype="int64").expand([rows, length])
    after_BK = paddle.concat([after_BK, paddle.full([rows, 1], length, dtype="int64")], axis=1)
    sample_BS = paddle.searchsorted(after_BK, position_BS, right=True)
    return paddle.take_along_axis(after_BK, sample_BS, axis=1).astype("int32")


def sample_positions(lengths_BK: paddle.Tensor, length: int) -> paddle.Tensor:
    """Return `position_ids` [B, S] int64 of rows of `length` positions, from 0 in each sample and in the padding."""
    lengths_BK = lengths_BK.astype("int64")
    after_BK = lengths_BK.cumsum(axis=1)
    rows = after_BK.shape[0]
    position_BS = paddle.arange(length, dtype="int64").expand([rows, length])
    begin_BK = paddle.concat([paddle.zeros([rows, 1], dtype="int64"), after_BK], axis=1)
    sample_BS = paddle.searchsorted(after_BK, position_BS, right=True)
    return position_BS - paddle.take_along_axis(begin_BK, sample_BS, axis=1)


def sample_starts(sample_ends_BS: paddle.Tensor) -> paddle.Tensor:
    """Return booleans [B, S] that mark the first position of each sample."""
    return paddle.concat(
        [paddle.ones_like(sample_ends_BS[:, :1]), sample_ends_BS[:, 1:] - sample_ends_BS[:, :-1]], axis=1
    ).astype("bool")


def sample_ends_of_starts(sample_starts_BS: paddle.Tensor) -> paddle.Tensor:
    """Return `sample_ends` from booleans [B, S] that mark the first positions."""
    rows, length = sample_starts_BS.shape
    position_BS = paddle.arange(length, dtype="int64").expand([rows, length])
    begin_BS = paddle.where(sample_starts_BS.astype("bool"), position_BS, paddle.full([1], length, dtype="int64"))
    after_BS = paddle.concat([begin_BS[:, 1:], paddle.full([rows, 1], length, dtype="int64")], axis=1)
    return paddle.cummin(after_BS.flip(1), axis=1)[0].flip(1).astype("int32")


def sample_positions_of(sample_ends_BS: paddle.Tensor) -> paddle.Tensor:
    """Return `position_ids` [B, S] int64 from `sample_ends`."""
    rows, length = sample_ends_BS.shape
    position_BS = paddle.arange(length, dtype="int64").expand([rows, length])
    return position_BS - paddle.cummax(position_BS * sample_starts(sample_ends_BS).astype("int64"), axis=1)[0]


def is_sample_ends(mask: Any) -> bool:
    """Return whether an attention mask is `sample_ends`, the only one in int32; masks are booleans, floats or int64."""
    return mask is not None and mask.dtype == paddle.int32


def sample_lengths(sample_ends_BS: paddle.Tensor) -> list[int]:
    """Return the lengths of all samples of all rows in order, including padding."""
    found = []
    for sample_ends_S in sample_ends_BS.numpy():
        start = 0
        while start < len(sample_ends_S):
            found.append(int(sample_ends_S[start]) - start)
            start = int(sample_ends_S[start])
    return found


def attend(
    q_BSND: paddle.Tensor,
    k_BSND: paddle.Tensor,
    v_BSND: paddle.Tensor,
    sample_ends_BS: paddle.Tensor,
    *,
    slopes: list[float] | None = None,
    dropout: float = 0.0,
) -> paddle.Tensor:
    """Compute softmax(q k^T / sqrt(D)) v [B, S, N, D], where each position sees earlier ones of its sample.

    Args:
        q_BSND: Queries.
        k_BSND: Keys, with fewer heads than the queries if several queries share one.
        v_BSND: Values, with as many heads as the keys.
        sample_ends_BS: Index after the last position of each position's sample.
        slopes: Slopes [N] of ALiBi (Press et al. 2022); None without ALiBi.
        dropout: Dropout rate of the attention probabilities; 0 outside training.
    """
    if has_flash_kernels(q_BSND, k_BSND, v_BSND):
        if slopes is None:
            columns_B1S1 = sample_ends_BS.unsqueeze([1, -1])
            return F.flashmask_attention(q_BSND, k_BSND, v_BSND, columns_B1S1, dropout=dropout, causal=True)
        mask_BNSS = alibi_mask(
            causal_within_samples(sample_ends_BS), sample_positions_of(sample_ends_BS), slopes, v_BSND.dtype
        )
        return fused_attention(q_BSND, k_BSND, v_BSND, attn_mask=mask_BNSS, dropout_p=dropout)
    k_BSND, v_BSND = (repeated_heads(states, q_BSND.shape[2]) for states in (k_BSND, v_BSND))
    plain = all(tensor.dtype == paddle.float32 for tensor in (q_BSND, k_BSND, v_BSND))
    if plain and not dropout and not on_gpu(q_BSND):
        return _attend_by_sample(q_BSND, k_BSND, v_BSND, sample_ends_BS, slopes)
    return _attend_with_full_mask(q_BSND, k_BSND, v_BSND, sample_ends_BS, slopes, dropout)


def causal_within_samples(sample_ends_BS: paddle.Tensor) -> paddle.Tensor:
    """Return booleans [B, 1, S, S]: each query sees its own position and earlier ones of its sample."""
    position_S = paddle.arange(sample_ends_BS.shape[1], dtype="int32")
    query_S1 = position_S.unsqueeze(1)
    return ((query_S1 >= position_S) & (query_S1 < sample_ends_BS.unsqueeze(1))).unsqueeze(1)


def alibi_mask(
    seen_B1ST: paddle.Tensor, position_BT: paddle.Tensor, slopes: list[float], dtype: paddle.dtype
) -> paddle.Tensor:
    """Return the mask [B, N, S, T] that is added to scores: ALiBi (Press et al. 2022); hidden keys get the lowest number.

    Args:
        seen_B1ST: Whether a query sees a key.
        position_BT: Position of each key in its sample, [B or 1, T].
        slopes: Slopes of ALiBi [N].
        dtype: Type of the mask.
    """
    slopes_N1 = paddle.to_tensor(slopes, dtype="float32").unsqueeze(1)
    bias_BN1T = (slopes_N1 * position_BT.astype("float32").unsqueeze(1)).astype(dtype).unsqueeze(2)
    return paddle.where(seen_B1ST, bias_BN1T, paddle.full([1], paddle.finfo(dtype).min, dtype))


def _attend_by_sample(
    q: Any, k: Any, v: Any, sample_ends_BS: paddle.Tensor, slopes: list[float] | None
) -> paddle.Tensor:
    shape = q.shape
    groups = group_short_samples(sample_lengths(sample_ends_BS))
    sizes = [sum(group) for group in groups]
    parts = [paddle.split(x.reshape([1, -1, *x.shape[2:]]), sizes, axis=1) for x in (q, k, v)]
    outputs = [
        CausalAttention.apply(*qkv, group if len(group) > 1 else None, slopes)
        for group, qkv in zip(groups, zip(*parts, strict=True), strict=True)
    ]
    return paddle.concat(outputs, axis=1).reshape(shape)


def group_short_samples(lengths: list[int]) -> list[list[int]]:
    """Group adjacent samples of at most one block in total: one small mask costs less than several calls."""
    groups: list[list[int]] = []
    free = 0
    for length in lengths:
        if length > free:
            groups.append([])
            free = MIN_BLOCK
        groups[-1].append(length)
        free -= length
    return groups


def prefix_mask(prefix_B1: paddle.Tensor, length: int) -> paddle.Tensor:
    """Return booleans [B, 1, S, S]: each position sees the prefix and earlier positions (Du et al. 2022, section 2.1).

    Args:
        prefix_B1: Number of tokens of each sample's prefix.
        length: Number of positions S.
    """
    position_S = paddle.arange(length)
    causal_SS = position_S.unsqueeze(0) <= position_S.unsqueeze(1)
    in_prefix_BS = position_S.unsqueeze(0) < prefix_B1.astype("int64")
    return (causal_SS.unsqueeze(0) | in_prefix_BS.unsqueeze(1)).unsqueeze(1)


def packed_prefix_mask(lengths_BK: paddle.Tensor, prefixes_BK: paddle.Tensor, length: int) -> paddle.Tensor:
    """Return booleans [B, 1, S, S]: each position sees the prefix of its sample and earlier positions of its sample.

    Args:
        lengths_BK: Lengths of the samples.
        prefixes_BK: Lengths of their prefixes.
        length: Number of positions S.
    """
    sample_ends_BS = sample_ends(lengths_BK, length).astype("int64")
    position_BS = sample_positions_of(sample_ends_BS.astype("int32"))
    rows = sample_ends_BS.shape[0]
    after_BK = lengths_BK.astype("int64").cumsum(axis=1)
    sample_BS = paddle.searchsorted(after_BK, paddle.arange(length, dtype="int64").expand([rows, length]), right=True)
    prefixes_BK = paddle.concat([prefixes_BK.astype("int64"), paddle.zeros([rows, 1], dtype="int64")], axis=1)
    in_prefix_BS = position_BS < paddle.take_along_axis(prefixes_BK, sample_BS, axis=1)
    same_BSS = sample_ends_BS.unsqueeze(1) == sample_ends_BS.unsqueeze(2)
    backwards_BSS = position_BS.unsqueeze(1) <= position_BS.unsqueeze(2)
    return (same_BSS & (backwards_BSS | in_prefix_BS.unsqueeze(1))).unsqueeze(1)


def _attend_with_full_mask(
    q: Any, k: Any, v: Any, sample_ends_BS: paddle.Tensor, slopes: list[float] | None, dropout: float
) -> paddle.Tensor:
    q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))
    scores = paddle.matmul(q * (1.0 / math.sqrt(q.shape[-1])), k, transpose_y=True).astype("float32")
    position_S = paddle.arange(sample_ends_BS.shape[1], dtype="int32")
    if slopes is not None:
        slopes_N1 = paddle.to_tensor(slopes, dtype="float32").unsqueeze(1)
        scores = scores + (slopes_N1 * position_S.astype("float32")).unsqueeze([0, 2])
    seen_B1SS = causal_within_samples(sample_ends_BS)
    weights = F.softmax(paddle.where(seen_B1SS, scores, paddle.full([1], -1e30)), axis=-1).astype(v.dtype)
    weights = F.dropout(weights, dropout)
    return paddle.matmul(weights, v).transpose([0, 2, 1, 3])
