"""Each family equals one process in the layouts that it supports, checked by the oracle."""

from __future__ import annotations

from typing import Any

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.oracle import prove
from tests.rehearse.cases import make_case

TP = Layout(tensor=2)
STAGE2 = Layout(sharding=2, sharding_stage=2)
PP = Layout(pipeline=2)
PP_STAGE2 = Layout(pipeline=2, sharding=2, sharding_stage=2)
TP_PP = Layout(tensor=2, pipeline=2)
ROWS: list[tuple[str, Layout, dict[str, Any], dict[str, Any]]] = [
    ("bloom", PP, {}, {"recompute": True}),
    ("bloom", PP_STAGE2, {}, {}),
    ("bloom", TP_PP, {"vocab_size": 121}, {"per_device_train_batch_size": 2}),
    ("opt", TP, {"vocab_size": 121}, {"recompute": True}),
    ("opt", TP, {"word_embed_proj_dim": 32, "do_layer_norm_before": False}, {}),
    ("opt", STAGE2, {}, {"per_device_train_batch_size": 2}),
    ("glm", TP, {"vocab_size": 121}, {"recompute": True}),
    ("glm", STAGE2, {}, {}),
    ("qwen2", TP, {"num_key_value_heads": 2, "tie_word_embeddings": True}, {"recompute": True}),
    ("qwen2", STAGE2, {}, {"per_device_train_batch_size": 2}),
    ("qwen2", PP, {"tie_word_embeddings": True}, {}),
    ("mistral", TP, {"vocab_size": 121, "pad_token_id": 5}, {"recompute": True}),
    ("mistral", STAGE2, {}, {"per_device_train_batch_size": 2}),
    ("qwen2", Layout(tensor=2, sequence_parallel=True), {"num_key_value_heads": 2}, {}),
]


@pytest.mark.parametrize(("family", "layout", "model", "settings"), ROWS, ids=lambda value: str(value).replace(" ", ""))
def test_a_family_in_a_layout_equals_one_process(tmp_path, family, layout, model, settings):
    verdict = prove(make_case(tmp_path, layout, family=family, model=model, ignored_labels=True, **settings))
    assert verdict.passed, verdict.failures[:5]
