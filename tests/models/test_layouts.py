"""Any layout starts from the same full weights as one process, takes the same step, and loads the same files."""

from __future__ import annotations

import pytest

from paddle_llm.config.layout import Layout
from tests.models.building import WRITERS, build
from tests.models.layouts import assert_covers, step
from tests.ranks import run_ranks

TP2 = Layout(tensor=2)
CASES = {
    "llama tp2": ("llama", TP2, {}, {}),
    "llama tp2, sequence parallel": ("llama", Layout(tensor=2, sequence_parallel=True), {}, {}),
    "llama pp2": ("llama", Layout(pipeline=2), {}, {}),
    "llama tp2 pp2, sequence parallel": ("llama", Layout(tensor=2, pipeline=2, sequence_parallel=True), {}, {}),
    "llama pp2, tied": ("llama", Layout(pipeline=2), {"tie_word_embeddings": True}, {}),
    "llama tp2, tied": ("llama", TP2, {"tie_word_embeddings": True}, {}),
    "llama tp2, grouped": ("llama", TP2, {"num_key_value_heads": 2}, {}),
    "llama tp2, one key-value head": ("llama", TP2, {"num_key_value_heads": 1}, {}),
    "llama tp2, one key-value head, sequence parallel": (
        "llama",
        Layout(tensor=2, sequence_parallel=True),
        {"num_key_value_heads": 1},
        {},
    ),
    "llama tp2, three key-value heads": (
        "llama",
        TP2,
        {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3},
        {},
    ),
    "llama tp2, fused": ("llama", TP2, {}, {"fuse_attention_qkv": True, "fuse_attention_ffn": True}),
    "llama tp2, odd vocabulary": ("llama", TP2, {"vocab_size": 121}, {}),
    "llama tp2, tied, odd vocabulary": ("llama", TP2, {"vocab_size": 121, "tie_word_embeddings": True}, {}),
    "llama tp2 pp2, odd vocabulary": ("llama", Layout(tensor=2, pipeline=2), {"vocab_size": 121}, {}),
    "chatglm tp2": ("chatglm", TP2, {}, {}),
    "chatglm2 tp2": ("chatglm_v2", TP2, {}, {}),
    "chatglm2 tp2, sequence parallel": ("chatglm_v2", Layout(tensor=2, sequence_parallel=True), {}, {}),
    "chatglm2 tp2, odd vocabulary": ("chatglm_v2", TP2, {"padded_vocab_size": 121}, {}),
    "chatglm2 pp2": ("chatglm_v2", Layout(pipeline=2), {}, {}),
    "chatglm2 pp2, recompute": ("chatglm_v2", Layout(pipeline=2), {}, {"recompute": True}),
    "chatglm2 tp2 pp2, sequence parallel": ("chatglm_v2", Layout(tensor=2, pipeline=2, sequence_parallel=True), {}, {}),
    "bloom tp2": ("bloom", TP2, {}, {}),
    "bloom tp2, odd vocabulary": ("bloom", TP2, {"vocab_size": 121}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layout_is_one_process(tmp_path, case):
    family, layout, overrides, fields = CASES[case]
    folder = WRITERS[family](tmp_path, **overrides)
    alone = step(folder, family, Layout(), fields)
    ranks = run_ranks(step, layout.world_size, folder, family, layout, fields)
    assert_covers([rank["before"] for rank in ranks], alone["before"], 0)
    assert [rank["loss"] for rank in ranks] == pytest.approx([alone["loss"]] * layout.world_size, abs=2e-6)
    assert_covers([rank["after"] for rank in ranks], alone["after"], 3e-6)


@pytest.mark.parametrize("case", ["llama tp2 pp2, odd vocabulary", "llama tp2, fused", "chatglm2 tp2, odd vocabulary"])
def test_a_layout_loads_what_one_process_saved(tmp_path, case):
    family, layout, overrides, fields = CASES[case]
    folder = WRITERS[family](tmp_path / "config", **overrides)
    build(folder, seed=9).save_pretrained(str(tmp_path / "saved"), safe_serialization=True, max_shard_size="100KB")
    fields = {**fields, "load": True}
    alone = step(tmp_path / "saved", family, Layout(), fields)
    ranks = run_ranks(step, layout.world_size, tmp_path / "saved", family, layout, fields)
    assert_covers([rank["before"] for rank in ranks], alone["before"], 0)
