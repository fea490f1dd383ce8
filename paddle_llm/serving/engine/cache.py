"""Keys and values of many texts of different lengths, in a fixed memory budget, for one static program.

A static program writes the new tokens of all rows to the same columns of its buffers, and a mask hides columns
(`export/targets/static/program.py`). So all texts that are decoded together write their next token to one shared column,
and the tokens of a text may be in any columns: its prompt from column 0 on, its later tokens wherever the shared column
was. A text can join or leave at any step, and nothing is copied when it joins. When the buffers are full, the tokens of
each text are moved together, which frees the columns between them.

The memory of each layer is one block. Its division into rows of C columns changes with the lengths of the texts: rows x
C never exceeds the budget.

Shapes: R rows, C columns, L layers, K key-value heads, D head width, s tokens of one run, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.generation.static.program import MASKED, StaticProgram
from paddle_llm.models.prompt import Prompt
from paddle_llm.models.token_positions import PaddedPrompts

if TYPE_CHECKING:
    import paddle

_STEP = 32  # columns; widths are multiples of it
_SPARE = 64  # columns beyond the longest text, at least


@dataclass
class _Row:
    """A text in the cache.

    Attributes:
        prompt: Its prompt.
        positions: Positions of its tokens, [1 or 2, tokens].
        full_length: Maximum number of its tokens.
        length: Number of its tokens in the cache.
    """

    prompt: Prompt
    positions: np.ndarray
    full_length: int
    length: int = 0

    @property
    def next_length(self) -> int:
        """Number of columns that the row needs: its prompt, or its tokens, and the next one."""
        return max(len(self.prompt), self.length + 1)


class SlotCache:
    """The keys and values of texts, and the runs of the program that read and write them.

    Rows 0 to n - 1 are those of texts in the order in which they were opened, except that `close` moves rows.

    Args:
        program: The program.
        tokens: Budget: rows x columns never exceeds this number.
        max_rows: Maximum number of texts.
    """

    def __init__(self, program: StaticProgram, tokens: int, max_rows: int) -> None:
        self._program, self._description = program, program.config
        self.tokens, self._max_rows = tokens, max_rows
        description = self._description
        self._token_size = description.kv_heads * description.head_width
        self._memory = [np.zeros(tokens * self._token_size, np.float32) for _ in range(2 * description.layers)]
        self._rows: list[_Row] = []
        self._column = 0  # the shared column of the next token
        self._divide(0)

    # ---- texts ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._rows)

    @property
    def used_tokens(self) -> int:
        """Number of tokens in the cache."""
        return sum(row.length for row in self._rows)

    def fits(self, full_length: int) -> bool:
        """Return whether one more text of at most `full_length` tokens can be computed to its end with the others."""
        longest = max([full_length, *(row.full_length for row in self._rows)])
        return len(self._rows) < self._max_rows and (len(self._rows) + 1) * longest <= self.tokens

    def open(self, prompt: Prompt, max_new_tokens: int) -> int:
        """Add a text whose tokens are not read yet, and return its row. Call it only if `fits`."""
        padded = PaddedPrompts([prompt], max_new_tokens, block_positions=self._description.position_rows == 2)
        positions = padded.positions[0].reshape(-1, padded.tokens_BT.shape[1])
        row = len(self._rows)
        self._rows.append(_Row(prompt, positions, len(prompt) + max_new_tokens))
        needed = self._needed_columns()
        if self._columns < needed or (row + 1) * self._columns > self.tokens:
            self._move_together()
        self._mask_R11C[row] = MASKED
        self._keys_R11C[row] = 0
        for buffer in self._buffers:
            buffer[row] = 0
        return row

    def close(self, row: int, decoding: int) -> None:
        """Remove a text.

        Args:
            row: Its row: the last one, or one that is decoded. In the second case the last text that is decoded takes
                the free row, and the text after it, whose prompt is being read, moves up.
            decoding: Number of rows that are decoded.
        """
        last = len(self._rows) - 1
        for free, moved in ((row, decoding - 1), (decoding - 1, last)) if row < decoding else ():
            if moved > free:
                self._copy_row(moved, free)
        del self._rows[last]
        if self._rows and self._columns > 2 * self._preferred_columns():
            self._move_together()

    # ---- runs of the program ----------------------------------------------------------------------------------------

    def read_prompt(self, row: int, count: int) -> np.ndarray:
        """Read the next `count` tokens of a prompt and return the logits [V] after the last of them."""
        text = self._rows[row]
        start, end = text.length, text.length + count
        mask_11sC = np.full((1, 1, count, self._columns), MASKED, np.float32)
        if text.prompt.prefix and start == 0:
            padded = PaddedPrompts([text.prompt], 0, block_positions=False)
            mask_11sC[0, 0, :, :end][padded.prompt_mask()[0, :count, :end]] = 0
        else:
            mask_11sC[0, 0, :, :end][np.arange(start, end)[:, None] >= np.arange(end)] = 0
        self._keys_R11C[row, 0, 0, start:end] = np.arange(start, end)
        self._mask_R11C[row, 0, 0, start:end] = 0
        ids = np.asarray(text.prompt.ids[start:end], np.int64)[None]
        positions = text.positions[None, :, start:end]
        logits_1V = self._run(ids, positions, mask_11sC, (row, row + 1), start)
        text.length = end
        return logits_1V[0]

    def decode(self, tokens_R: np.ndarray) -> np.ndarray:
        """Append one token to each of the first rows, whose prompts are read, and return the next logits [R, V]."""
        count = len(tokens_R)
        rows = self._rows[:count]
        longest = max(row.length for row in rows)
        if max(self._column, longest) >= self._columns:
            self._move_together()
        self._column = column = max(self._column, longest)
        self._mask_R11C[:count, 0, 0, column] = 0
        self._keys_R11C[:count, 0, 0, column] = [row.length for row in rows]
        positions = np.stack([row.positions[:, row.length : row.length + 1] for row in rows])
        mask = self._mask_R11C[:count]
        logits_RV = self._run(np.asarray(tokens_R, np.int64)[:, None], positions, mask, (0, count), column)
        for row in rows:
            row.length += 1
        self._column += 1
        return logits_RV

    def _run(
        self, ids_Rs: np.ndarray, positions: np.ndarray, mask: np.ndarray, rows: tuple[int, int], column: int
    ) -> np.ndarray:
        inputs = {"input_ids": ids_Rs, "places": np.array([column, column + ids_Rs.shape[1]]), "mask": mask}
        if self._description.position_rows:
            inputs["position_ids"] = positions
        if self._description.key_places:
            inputs["key_places"] = self._keys_R11C[rows[0] : rows[1]]
        return self._program.run(inputs, self._tensors_of(rows))

    def _tensors_of(self, rows: tuple[int, int]) -> list[paddle.Tensor]:
        """Return the buffers of some rows as tensors that share their memory."""
        if rows not in self._tensors:
            import paddle

            start, end = rows
            self._tensors[rows] = [paddle.from_dlpack(buffer[start:end]) for buffer in self._buffers]
        return self._tensors[rows]

    # ---- memory -----------------------------------------------------------------------------------------------------

    def _needed_columns(self) -> int:
        return max((row.next_length for row in self._rows), default=0)

    def _preferred_columns(self) -> int:
        """Return a width with spare columns, so that texts are moved seldom. The budget limits it."""
        needed = self._needed_columns()
        spare = needed + max(_SPARE, needed // 4)
        return max(needed, min(self.tokens // len(self._rows), -(-spare // _STEP) * _STEP))

    def _move_together(self) -> None:
        """Divide the memory into rows of the preferred width, and move the tokens of each text to its first columns."""
        old_buffers, old_mask_R11C = self._buffers, self._mask_R11C
        # A text that was just opened has no row in the old division.
        used = [
            np.flatnonzero(old_mask_R11C[row, 0, 0] == 0) for row in range(min(len(self._rows), len(old_mask_R11C)))
        ]
        used = [columns[: text.length] for columns, text in zip(used, self._rows, strict=False)]
        self._divide(self._preferred_columns())
        for old, new in zip(old_buffers, self._buffers, strict=True):
            kept = [old[row][:, columns] for row, columns in enumerate(used)]
            for row, states_KTD in enumerate(kept):
                new[row, :, : states_KTD.shape[1]] = states_KTD
                new[row, :, states_KTD.shape[1] :] = 0
        for row, columns in enumerate(used):
            self._mask_R11C[row, 0, 0, : len(columns)] = 0
            self._keys_R11C[row, 0, 0, : len(columns)] = np.arange(len(columns))
        self._column = 0  # `decode` raises it to the longest row

    def _divide(self, columns: int) -> None:
        """Divide the memory of each layer into rows [R, K, C, D]. It keeps its values."""
        description = self._description
        rows = min(self._max_rows, self.tokens // columns) if columns else 0
        shape = (rows, description.kv_heads, columns, description.head_width)
        size = rows * columns * self._token_size
        self._columns = columns
        self._buffers = [block[:size].reshape(shape) for block in self._memory]
        self._tensors: dict[tuple[int, int], list[paddle.Tensor]] = {}
        self._mask_R11C = np.full((rows, 1, 1, columns), MASKED, np.float32)
        self._keys_R11C = np.zeros((rows, 1, 1, columns), np.float32)

    def _copy_row(self, source: int, target: int) -> None:
        for buffer in self._buffers:
            buffer[target] = buffer[source]
        self._mask_R11C[target] = self._mask_R11C[source]
        self._keys_R11C[target] = self._keys_R11C[source]
        self._rows[target] = self._rows[source]
