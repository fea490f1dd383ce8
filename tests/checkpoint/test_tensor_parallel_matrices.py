"""Matrices that tensor parallelism splits in a special way continue on other tensor-parallel degrees with the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddle_llm.checkpoint.format.reader import Reader
from paddle_llm.config.layout import Layout
from tests.checkpoint.layout_runs import Part, different_tensors, losses, run_part
from tests.helpers.models.networks import WRITERS

ONE, TENSOR, SHARDED = Layout(), Layout(tensor=2), Layout(tensor=2, sharding=2, sharding_stage=2)
FUSED = {"fuse_attention_qkv": True, "fuse_attention_ffn": True}
# family, keys of config.json, fields of RunConfig, layouts by step, a weight that shows that the case is what it says
CASES = {
    "fused matrices": (
        "llama",
        {"num_key_value_heads": 2},
        FUSED,
        (ONE, TENSOR, ONE, SHARDED),
        ("gate_up_fused_proj", 2),
    ),
    "undivided key-value heads": ("llama", {"num_key_value_heads": 1}, {}, (ONE, TENSOR, ONE), ("k_proj", 1)),
    "fused, padded vocabulary": (
        "llama",
        {"num_key_value_heads": 4, "vocab_size": 129, "tie_word_embeddings": True},
        FUSED,
        (TENSOR, ONE, TENSOR),
        ("qkv_proj", 2),
    ),
    "fused by section": ("chatglm_v2", {"multi_query_group_num": 2}, {}, (ONE, TENSOR, ONE), ("query_key_value", 2)),
    "fused by head": ("bloom", {"vocab_size": 129}, {}, (TENSOR, ONE, TENSOR), ("query_key_value", 2)),
}


@pytest.mark.parametrize(
    "case", [*list(CASES)[:3], *(pytest.param(case, marks=pytest.mark.slow) for case in list(CASES)[3:])]
)
def test_the_tensor_parallel_degree_changes_after_every_step(case, tmp_path):
    family, shape, fields, layouts, (matrix, parts) = CASES[case]
    names = (
        {"num_layers": 2}
        if family == "chatglm_v2"
        else {"n_layer": 2}
        if family == "bloom"
        else {"num_hidden_layers": 2}
    )
    changes = {"model_name_or_path": str(WRITERS[family](tmp_path / family, **names, **shape)), **fields}
    whole = tmp_path / "whole"
    run_part(whole, Part(ONE, len(layouts), changes=tuple(changes.items())))
    start: Path | None = None
    for step, layout in enumerate(layouts, 1):
        run_part(tmp_path, Part(layout, step, start, tuple(changes.items())))
        if start is not None:
            assert different_tensors(start, tmp_path / "loaded" / start.name) == []
        start = tmp_path / "output" / f"checkpoint-{step}"
        if layout.tensor == 2:
            assert _parts(start, matrix) == {parts}
    expected = losses(whole)
    for step, loss in losses(tmp_path).items():
        np.testing.assert_allclose(loss, expected[step], rtol=5e-6, err_msg=f"step {step}")
    assert len(losses(tmp_path)) == len(layouts)


def _parts(folder: Path, matrix: str) -> set[int]:
    """Return the numbers of parts of the weights and moments with a name."""
    with Reader(folder) as reader:
        entries = [entry for key, entry in reader.index.tensors.items() if matrix in key and len(entry.shape) == 2]
    assert len(entries) >= 6  # weight and two moments of two layers
    return {len(entry.parts) for entry in entries}
