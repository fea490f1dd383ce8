"""The mask of a prefix language model: ChatGLM-6B and GLM (Du et al. 2022, section 2.1)."""

from __future__ import annotations

import paddle


def prefix_mask(prefix_B1: paddle.Tensor, length: int) -> paddle.Tensor:
    """Which position may look at which: at all of the prefix, else backwards. [B, 1, S, S] of booleans.

    Args:
        prefix_B1: number of tokens of each sample's prefix.
    """
    position_S = paddle.arange(length)
    causal_SS = position_S.unsqueeze(0) <= position_S.unsqueeze(1)
    in_prefix_BS = position_S.unsqueeze(0) < prefix_B1.astype("int64")
    return (causal_SS.unsqueeze(0) | in_prefix_BS.unsqueeze(1)).unsqueeze(1)
