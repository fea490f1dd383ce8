"""Packing keeps every sample complete, leaves little padding, and depends only on the seed."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.data.samples.packing import pack


def lengths_like_instructions(count: int, seed: int = 0) -> np.ndarray:
    """Return log-normal lengths of 20 to 700 tokens, which resemble instruction data."""
    return np.clip(np.random.RandomState(seed).lognormal(4.9, 0.5, count).astype(int), 20, 700)


@pytest.mark.parametrize("window", [50, 1 << 16])
def test_every_sample_is_in_exactly_one_row_and_fits(window: int) -> None:
    lengths = lengths_like_instructions(1000)
    packing = pack(lengths, 1024, seed=3, window=window)
    assert sorted(i for row in packing.rows for i in row) == list(range(1000))
    assert max(sum(lengths[i] for i in row) for row in packing.rows) <= 1024
    assert packing.tokens == lengths.sum() and packing.longest == lengths.max()
    assert packing.padding == pytest.approx(1 - lengths.sum() / (1024 * len(packing.rows)))
    assert packing.padding_unpacked == pytest.approx(1 - lengths.mean() / 1024)


def test_rows_are_full() -> None:
    for seed in range(3):
        assert pack(lengths_like_instructions(2000, seed), 1024, seed).padding < 0.006
    # With few short samples, repeatedly taking the longest that fits would leave 3% padding.
    few_short = np.clip(np.random.RandomState(0).lognormal(5.35, 0.33, 2000).astype(int), 115, 555)
    assert pack(few_short, 1024, 0).padding < 0.015
    tiny = np.random.RandomState(0).randint(1, 9, 5000)  # a row takes more samples than the search has tries
    assert pack(tiny, 4096, 0).padding < 0.1 and len(pack(tiny, 4096, 0).rows) == -(-tiny.sum() // 4096)
    assert pack([600] * 10, 1024, 0).padding == pytest.approx(1 - 600 / 1024)  # samples that do not fit together
    assert pack([512] * 10, 1024, 0).padding == 0


def test_the_seed_determines_the_rows() -> None:
    lengths = lengths_like_instructions(500)
    first, again, other = (pack(lengths, 1024, seed).rows for seed in (1, 1, 2))
    assert first == again != other
    longest = [max(lengths[i] for i in row) for row in first]
    assert longest != sorted(longest, reverse=True)  # rows are shuffled, although the search fills the last rows worst


def test_a_sample_longer_than_a_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="sample 1 has 1025 tokens, not 1 to 1024"):
        pack([5, 1025], 1024, 0)
    with pytest.raises(ValueError, match="sample 0 has 0 tokens"):
        pack([0], 1024, 0)
    assert pack([], 1024, 0).rows == []
