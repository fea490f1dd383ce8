"""Parsing of --input_dir and --split, and the order of a blend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.blend import Blend, parse_input_dir, split_bounds
from tests.helpers.corpus import numbered_documents, write_corpus


def test_input_dir_is_a_prefix_a_folder_or_a_blend(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_corpus(tmp_path / name, numbered_documents(3))
    np.savez(tmp_path / "old_idx.npz", lens=[1], docs=[0, 1])
    a, b, old = (str(tmp_path / n) for n in ("a", "b", "old"))
    assert parse_input_dir(a) == [(None, a)]
    assert parse_input_dir(a + ".bin") == [(None, a)]
    assert parse_input_dir(str(tmp_path)) == [(None, a), (None, b), (None, old)]
    assert parse_input_dir(f"0.3 {a} 0.7 {b}") == [(0.3, a), (0.7, b)]
    assert parse_input_dir(f"1 {a}") == [(1.0, a)]
    spaced = tmp_path / "a folder"
    spaced.mkdir()
    write_corpus(spaced / "c", numbered_documents(3))
    assert parse_input_dir(str(spaced)) == [(None, str(spaced / "c"))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.3 /a 0.7", "3 words. Write a blend as"),
        ("/a /b", "the weight '/a' is not a number"),
        ("0 /a 1 /b", "is not positive"),
        ("nan /a 1 /b", "is not positive"),
        ("", "empty"),
    ],
)
def test_a_malformed_blend_is_an_error(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_input_dir(text)


def test_folders_with_no_corpus_or_several_corpora(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no corpus"):
        parse_input_dir(str(tmp_path))
    for name in "ab":
        write_corpus(tmp_path / name, numbered_documents(3))
    with pytest.raises(UserError, match="contains 2 corpora"):
        parse_input_dir(f"0.5 {tmp_path} 0.5 /x")


def test_split_by_documents() -> None:
    assert split_bounds("949,50,1", 1000) == [(0, 949), (949, 999), (999, 1000)]
    assert split_bounds("0.9/0.1", 10) == [(0, 9), (9, 10), (10, 10)]
    assert split_bounds("1,0,0", 7) == [(0, 7), (7, 7), (7, 7)]
    for n in range(200):
        bounds = split_bounds("8,1,1", n)
        assert bounds[0][0] == 0 and bounds[2][1] == n
        assert bounds[0][1] == bounds[1][0] and bounds[1][1] == bounds[2][0]


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "-1,2", "0,0,0", "inf,1"])
def test_a_malformed_split_is_an_error(split: str) -> None:
    with pytest.raises(UserError, match="--split"):
        split_bounds(split, 10)


@pytest.mark.parametrize("weights", [[0.3, 0.7], [1, 1, 1], [5, 1e-4, 2, 0.33], [1 / 3] * 7, list(range(1, 60))])
def test_after_any_number_of_samples_each_corpus_is_near_its_share(weights: list[float]) -> None:
    blend = Blend(weights)
    shares = np.array(weights) / sum(weights)
    length = 200_000  # three blocks
    placed = np.array([blend.locate(i) for i in range(length)])
    counts = np.zeros(len(weights), dtype=np.int64)
    for k in range(len(weights)):
        own = placed[placed[:, 0] == k, 1]
        assert (own == np.arange(len(own))).all(), "each corpus's samples come in its order, none left out"
        counts[k] = len(own)
        running = np.cumsum(placed[:, 0] == k)
        drift = np.abs(running - shares[k] * np.arange(1, length + 1))
        assert drift.max() < (1.5 if len(weights) < 10 else 4)
    assert blend.counts(length) == counts.tolist()
    assert blend.counts(65_536) == np.bincount(placed[:65_536, 0], minlength=len(weights)).tolist()
    assert blend.counts(0) == [0] * len(weights)


def test_positions_can_be_requested_in_any_order() -> None:
    forward = Blend([0.3, 0.7])
    expected = [forward.locate(i) for i in range(140_000)]
    backward = Blend([3, 7])
    assert [backward.locate(i) for i in range(139_999, 0, -9973)] == expected[139_999:0:-9973]
