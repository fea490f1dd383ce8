"""Packed rows in layouts, proven equal to one process by the oracle (`tests/models/test_segments.py`: to their samples)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.oracle import prove
from tests.rehearse.cases import make_case

PP = Layout(pipeline=2)
ROWS: list[tuple[str, Layout, dict[str, Any]]] = [
    ("llama", Layout(tensor=2, sequence_parallel=True), {}),
    ("llama", PP, {"recompute": True, "recompute_granularity": "core_attn"}),
    ("llama", Layout(tensor=2, pipeline=2), {"recompute": True}),
    ("qwen2", PP, {"recompute": True}),
    ("chatglm_v2", PP, {"recompute": True}),
    ("chatglm_v2", Layout(tensor=2, sequence_parallel=True), {}),
    ("bloom", Layout(tensor=2, pipeline=2), {}),
    ("opt", Layout(tensor=2), {"recompute": True}),
]


def packed(sample: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    """The same tokens as samples of other lengths in each row."""
    first = 3 + number % 5
    lengths = np.array([first, 4, 12 - first - number % 2, 0])  # the last position of every second row is padding
    return {
        **sample,
        "segment_lengths": lengths,
        "position_ids": np.concatenate([np.arange(length) for length in [*lengths, 16 - lengths.sum()]]),
    }


@pytest.mark.parametrize(("family", "layout", "settings"), ROWS, ids=lambda value: str(value).replace(" ", ""))
def test_packed_rows_in_a_layout_are_those_of_one_process(tmp_path, family, layout, settings):
    case = make_case(tmp_path, layout, family=family, per_device_train_batch_size=2, **settings)
    parts = [[packed(sample, at) for at, sample in enumerate(part)] for part in (case.train, case.evaluation)]
    verdict = prove(replace(case, train=parts[0], evaluation=parts[1]))
    assert verdict.passed, verdict.failures[:5]
