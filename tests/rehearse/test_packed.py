"""Packed training equals unpacked training: the same samples in one step, several per row or one per row, in one process
and layouts alike (`tests/models/test_segments.py`: the network alone; the matrix: packed rows in layouts and one process)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.data.samples.dataset import InstructionDataset, PackedDataset
from paddle_llm.rehearse.case import Case
from paddle_llm.rehearse.oracle import prove, reference_of
from tests.rehearse.cases import instruction_samples, make_case

ALONE, TP, PP = Layout(), Layout(tensor=2), Layout(pipeline=2)
SP = Layout(tensor=2, sequence_parallel=True)
SAMPLES, ROWS, LENGTH = 10, 4, 36  # samples and rows of one step; tokens of a row
SMOOTHED = {"label_smoothing": 0.1}
LORA, PREFIX = {"lora": True, "lora_rank": 4}, {"prefix_tuning": True, "num_prefix_tokens": 4}
FAST: list[tuple[str, Layout, dict[str, Any]]] = [
    ("llama", TP, LORA),
    ("chatglm_v2", PP, SMOOTHED),
    ("chatglm", ALONE, {}),
    ("glm", ALONE, LORA),
    ("mistral", ALONE, {}),
]
SLOW: list[tuple[str, Layout, dict[str, Any]]] = [
    *((family, ALONE, {}) for family in ("llama", "chatglm_v2", "bloom", "opt", "qwen2", "glm")),
    *((family, TP, {}) for family in ("llama", "chatglm", "chatglm_v2", "bloom", "opt", "glm", "qwen2", "mistral")),
    *((family, PP, {}) for family in ("llama", "bloom", "qwen2")),
    *((family, ALONE, PREFIX) for family in ("llama", "chatglm_v2", "opt", "qwen2")),
    *((family, SP, {}) for family in ("llama", "chatglm_v2", "qwen2")),
    ("llama", TP, {**PREFIX, "recompute": True}),
    ("bloom", PP, {**LORA, "recompute": True}),
]


def both(folder: Path, family: str, layout: Layout, settings: dict[str, Any]) -> tuple[Case, Case]:
    """Return two cases of one step on the same samples: packed in a layout, unpacked in one process."""
    samples = instruction_samples(SAMPLES, family, 128)
    packed = PackedDataset(samples, LENGTH, seed=0)
    assert len(packed) == ROWS and {len(row) for row in packed.packing.rows} == {1, 3}
    settings = {"family": family, "entry": "finetune", "max_steps": 1, "evaluation": 0, **settings}
    one = make_case(folder, layout, packed=True, max_seq_length=LENGTH, global_batch=ROWS, **settings)
    other = make_case(folder, ALONE, global_batch=SAMPLES, **settings)
    alone = InstructionDataset(samples)
    return (
        replace(one, train=[packed[row] for row in range(ROWS)]),
        replace(other, train=[alone[number] for number in range(SAMPLES)]),
    )


@pytest.mark.parametrize(
    ("family", "layout", "settings"),
    [*FAST, *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW)],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_packed_training_equals_unpacked_training(tmp_path, family, layout, settings):
    """Loss, norm, every gradient, weight and moment of a step, within the limits of the oracle (1e-5)."""
    packed, unpacked = both(tmp_path, family, layout, settings)
    verdict = prove(packed, reference_of(unpacked))
    assert verdict.passed, verdict.failures[:5]
    assert verdict.compared > 50
