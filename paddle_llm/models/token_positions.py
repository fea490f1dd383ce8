"""Padding, positions and masks of a batch of prompts, computed once with numpy.

Shapes: B rows, S tokens of the longest prompt, T tokens in all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paddle_llm.models.prompt import Prompt


class PaddedPrompts:
    """A batch of prompts, the shorter ones padded on the left.

    Args:
        prompts: Prompts of at least one token.
        max_new_tokens: Maximum number of tokens that will follow.
        block_positions: Whether positions have two rows, the second of which counts tokens after the prefix (GLM, Du et
            al. 2022).

    Attributes:
        length: Number of tokens of the longest prompt, S.
        ids_BS: Token ids; 0 for padding.
        tokens_BT: 1 for a token, 0 for padding.
        positions: Positions [B, T] or [B, 2, T], counted from the first token of each row.
    """

    def __init__(self, prompts: Sequence[Prompt], max_new_tokens: int, *, block_positions: bool):
        self.length = max(map(len, prompts))
        self.tokens_BT = np.ones((len(prompts), self.length + max_new_tokens), np.int64)
        self.ids_BS = np.zeros((len(prompts), self.length), np.int64)
        for row, prompt in enumerate(prompts):
            padding = self.length - len(prompt)
            self.tokens_BT[row, :padding] = 0
            self.ids_BS[row, padding:] = prompt.ids
        self._prefixes_B = np.array([prompt.prefix for prompt in prompts])
        self.positions = self._positions(block_positions)

    def keep_rows(self, rows: np.ndarray) -> None:
        """Keep these rows, in this order."""
        self.tokens_BT, self.positions = self.tokens_BT[rows], self.positions[rows]

    def prompt_mask(self) -> np.ndarray:
        """Return booleans [B, S, S]: each position sees earlier ones and the whole prefix. Padding counts as a token."""
        position_S = np.arange(self.length)
        causal = position_S[:, None] >= position_S
        padding_B = (self.tokens_BT[:, : self.length] == 0).sum(axis=1)
        prefix_end_B = padding_B + self._prefixes_B
        return causal[None] | (position_S < prefix_end_B[:, None])[:, None] & (self._prefixes_B > 0)[:, None, None]

    def _positions(self, block_positions: bool) -> np.ndarray:
        counts_BT = np.maximum(self.tokens_BT.cumsum(axis=1) - 1, 0)
        if not block_positions:
            return counts_BT
        prefix_B1 = np.where(self._prefixes_B > 0, self._prefixes_B, counts_BT.shape[1])[:, None]
        in_text_BT = np.minimum(counts_BT, prefix_B1 - 1)
        in_block_BT = np.maximum(counts_BT - prefix_B1 + 1, 0)
        return np.stack([in_text_BT, in_block_BT], axis=1)
