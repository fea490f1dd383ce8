"""Parsing of `--input_dir` and `--split`, and the order in which a weighted blend draws from its corpora.

Does not import Paddle.
"""

from __future__ import annotations

import os

import numpy as np

from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.indexed import clean_prefix, corpus_exists

_BLOCK = 1 << 16


def parse_input_dir(input_dir: str) -> list[tuple[float | None, str]]:
    """Parse `--input_dir`: a folder, one prefix, or a weighted blend `"0.3 /a/prefix 0.7 /b/prefix"`.

    Returns:
        (weight, prefix) pairs. The corpora of a folder have no weight (None): each is weighted by its size.

    Raises:
        UserError: If the blend is malformed or the folder contains no corpus.
    """
    words = input_dir.split()
    if not words:
        raise UserError(
            '--input_dir is empty. Use a folder, a prefix, or a blend such as "0.3 /a/prefix 0.7 /b/prefix".'
        )
    if len(words) == 1 or os.path.exists(input_dir) or corpus_exists(input_dir):
        return [(None, prefix) for prefix in _prefixes(input_dir)]
    return _parse_blend(input_dir)


def _parse_blend(input_dir: str) -> list[tuple[float | None, str]]:
    blend: list[tuple[float | None, str]] = []
    for weight, prefix in parse_weighted_paths(input_dir, "--input_dir", "PREFIX") or []:
        found = _prefixes(prefix)
        if len(found) > 1:
            raise UserError(
                f"--input_dir {input_dir!r}: the folder {prefix} contains {len(found)} corpora "
                f"({', '.join(found[:4])}). Give each of them its own weight."
            )
        blend.append((weight, found[0]))
    return blend


def parse_weighted_paths(value: str, flag: str, placeholder: str = "FILE") -> list[tuple[float, str]] | None:
    """Parse a blend `"0.3 a 0.7 b"` into (weight, path) pairs.

    Args:
        value: Value of the flag.
        flag: Name of the flag, for messages.
        placeholder: What a path is called in messages.

    Returns:
        The pairs; None if `value` is a single word, which is not a blend.

    Raises:
        UserError: If the words do not form pairs or a weight is not a positive number.
    """
    words = value.split()
    paths = [path.strip() for path in value.split(",") if path.strip()]
    if len(paths) > 1 and all(os.path.exists(path) for path in paths):
        weighted = " ".join(f"1 {path}" for path in paths)
        raise UserError(
            f"{flag} {value!r}: comma-separated paths are not supported. Give a folder, a pattern, or a blend: {weighted!r}."
        )
    if len(words) == 1:
        return None
    example = placeholder.lower()
    form = (
        f'Write a blend as `WEIGHT {placeholder} WEIGHT {placeholder} ...`, as in "0.3 /a/{example} 0.7 /b/{example}"'
    )
    if len(words) % 2:
        raise UserError(f"{flag} {value!r}: not pairs of weight and path: {len(words)} words. {form}.")
    blend = []
    for number, path in zip(words[::2], words[1::2], strict=True):
        try:
            weight = float(number)
        except ValueError:
            raise UserError(f"{flag} {value!r}: the weight {number!r} is not a number. {form}.") from None
        if not 0 < weight < float("inf"):
            raise UserError(f"{flag} {value!r}: weight {number} of {path} is not positive. Use a weight above 0.")
        blend.append((weight, path))
    return blend


def _prefixes(path: str) -> list[str]:
    if not os.path.isdir(path) or corpus_exists(path):
        return [clean_prefix(path)]
    found = set()
    for name in os.listdir(path):
        for suffix in (".idx", "_idx.npz"):
            if name.endswith(suffix):
                found.add(os.path.join(path, name[: -len(suffix)]))
    if not found:
        raise UserError(
            f"--input_dir {path}: the folder contains no corpus (no .idx or _idx.npz file). Build one with "
            f"`paddle-llm data build --input FILES --tokenizer DIR --output_prefix {os.path.join(path, 'corpus')}`."
        )
    return sorted(found)


def split_bounds(split: str, n_documents: int) -> list[tuple[int, int]]:
    """Split documents into train, valid and test by `--split`, for example "949,50,1".

    Args:
        split: One to three shares with any sum, separated by "," or "/".
        n_documents: Number of documents.

    Returns:
        Three (first, stop) pairs of document numbers in the order of the corpus. Together they cover all documents.

    Raises:
        UserError: If `split` is malformed.
    """
    try:
        parts = [float(part) for part in split.replace("/", ",").split(",")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or any(not 0 <= p < float("inf") for p in parts) or not sum(parts):
        raise UserError(
            f"--split {split!r}: not one to three shares. Use non-negative numbers for train,valid,test, as in 949,50,1."
        )
    shares = np.cumsum(parts + [0.0] * (3 - len(parts))) / sum(parts)
    ends = [int(round(share * n_documents)) for share in shares]
    return list(zip([0, *ends[:2]], ends, strict=True))


class Blend:
    """Draws samples from corpora so that after any number of samples each corpus is within one of its share.

    The j-th sample (from 0) of a corpus with share w is due at time (j + 0.5) / w; samples are ordered by due time
    (Webster's apportionment method). The sample at a position is computed from the position alone, one block at a time.

    Attributes:
        shares: Normalized weights [K] of K corpora.
    """

    def __init__(self, weights: list[float]) -> None:
        self.shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        self._block_number = -1
        self._block: tuple[np.ndarray, np.ndarray] = (np.empty(0, np.int64), np.empty(0, np.int64))

    def locate(self, position: int) -> tuple[int, int]:
        """Return the corpus of the sample at a position of the blend, and how many samples that corpus gave before."""
        if len(self.shares) == 1:
            return 0, position
        number, at = divmod(position, _BLOCK)
        if number != self._block_number:
            self._block, self._block_number = self._compute(number), number
        return int(self._block[0][at]), int(self._block[1][at])

    def counts(self, length: int) -> list[int]:
        """Return how many of the first `length` samples come from each corpus."""
        if not length:
            return [0] * len(self.shares)
        if len(self.shares) == 1:
            return [length]
        before = self._due_before(float(max(length - 2 * len(self.shares), 0)))
        corpora, _ = self._between(before, self._due_before(length + 2.0 * len(self.shares)))
        rest = np.bincount(corpora[: length - int(before.sum())], minlength=len(self.shares))
        return [int(c) for c in before + rest]

    def _compute(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        # Until time t, t samples are due, plus or minus half a sample per corpus: a margin of one each is enough.
        margin = len(self.shares)
        before = self._due_before(float(max(number * _BLOCK - margin, 0)))
        corpora, given = self._between(before, self._due_before(float((number + 1) * _BLOCK + margin)))
        skip = number * _BLOCK - int(before.sum())
        return corpora[skip : skip + _BLOCK], given[skip : skip + _BLOCK]

    def _due_before(self, time: float) -> np.ndarray:
        """Return the number of samples of each corpus [K] that are due before a time.

        Uses the same division as `_between`, so that both agree at the boundary.
        """
        counts = np.floor(self.shares * time).astype(np.int64)  # off by at most one; the loops below correct it
        while (late := (counts + 0.5) / self.shares < time).any():
            counts += late
        while (early := (counts > 0) & ((counts - 0.5) / self.shares >= time)).any():
            counts -= early
        return counts

    def _between(self, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        amounts = after - before
        corpora = np.repeat(np.arange(len(self.shares)), amounts)
        first = np.cumsum(amounts) - amounts
        given = np.arange(len(corpora)) - np.repeat(first - before, amounts)
        order = np.lexsort((corpora, (given + 0.5) / self.shares[corpora]))
        return corpora[order], given[order]
