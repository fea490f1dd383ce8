"""Which tokens stand where in a batch of prompts: padding, positions and masks, made once and in numpy.

Shapes: B rows, S tokens of the longest prompt, T tokens in all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paddle_llm.models.prompt import Prompt


class Places:
    """A batch of prompts, the shorter ones padded on the left.

    Args:
        prompts: none of them empty.
        room: the most tokens that will follow.
        blocks: positions have two rows: the second one counts what is generated behind a prefix (GLM, Du et al. 2022).

    Attributes:
        length: S. ids_BS: the tokens, padding 0. tokens_BT: 1 where there is one, 0 for padding.
        positions: [B, T], or [B, 2, T]: each row counts from its first token.
    """

    def __init__(self, prompts: Sequence[Prompt], room: int, *, blocks: bool):
        self.length = max(map(len, prompts))
        self.tokens_BT = np.ones((len(prompts), self.length + room), np.int64)
        self.ids_BS = np.zeros((len(prompts), self.length), np.int64)
        for row, prompt in enumerate(prompts):
            padding = self.length - len(prompt)
            self.tokens_BT[row, :padding] = 0
            self.ids_BS[row, padding:] = prompt.ids
        self._prefixes_B = np.array([prompt.prefix for prompt in prompts])
        self.positions = self._positions(blocks)

    def keep_rows(self, rows: np.ndarray) -> None:
        """Go on with these rows, in this order."""
        self.tokens_BT, self.positions = self.tokens_BT[rows], self.positions[rows]

    def prompt_mask(self) -> np.ndarray:
        """Which position of the prompts looks at which: backwards, and at all of the prefix; padding counts as a token. [B, S, S]."""
        place_S = np.arange(self.length)
        causal = place_S[:, None] >= place_S
        padding_B = (self.tokens_BT[:, : self.length] == 0).sum(axis=1)
        ends_B = padding_B + self._prefixes_B
        return causal[None] | (place_S < ends_B[:, None])[:, None] & (self._prefixes_B > 0)[:, None, None]

    def _positions(self, blocks: bool) -> np.ndarray:
        places_BT = np.maximum(self.tokens_BT.cumsum(axis=1) - 1, 0)
        if not blocks:
            return places_BT
        prefix_B1 = np.where(self._prefixes_B > 0, self._prefixes_B, places_BT.shape[1])[:, None]
        ahead_BT = np.minimum(places_BT, prefix_B1 - 1)
        behind_BT = np.maximum(places_BT - prefix_B1 + 1, 0)
        return np.stack([ahead_BT, behind_BT], axis=1)
