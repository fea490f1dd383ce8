"""Any layout starts from the same full weights as one process, takes the same step, and loads the same files.

Many models in one job of ranks, one step each; trainings in more layouts are proven by the oracle (tests/rehearse/).
"""

from __future__ import annotations

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.models.layout_steps import assert_covers, rows, step, steps
from tests.helpers.models.networks import WRITERS, build

ODD = {"vocab_size": 121}
TIED = {"tie_word_embeddings": True}
FUSED = {"fuse_attention_qkv": True, "fuse_attention_ffn": True}
# layout -> name of a case -> family, overrides of config.json, fields of RunConfig
CASES = {
    Layout(tensor=2): {
        "llama": ("llama", {}, {}),
        "llama, tied": ("llama", TIED, {}),
        "llama, grouped": ("llama", {"num_key_value_heads": 2}, {}),
        "llama, one key-value head": ("llama", {"num_key_value_heads": 1}, {}),
        "llama, three key-value heads": (
            "llama",
            {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3},
            {},
        ),
        "llama, fused": ("llama", {"num_key_value_heads": 2}, FUSED),
        "llama, odd vocabulary": ("llama", ODD, {}),
        "llama, tied, odd vocabulary": ("llama", {**ODD, **TIED}, {}),
        "chatglm": ("chatglm", {}, {}),
        "chatglm, odd vocabulary": ("chatglm", {"vocab_size": 129}, {}),
        "chatglm2": ("chatglm_v2", {}, {}),
        "chatglm2, odd vocabulary": ("chatglm_v2", {"padded_vocab_size": 121}, {}),
        "bloom": ("bloom", {}, {}),
        "bloom, odd vocabulary": ("bloom", ODD, {}),
    },
    Layout(pipeline=2): {
        "llama": ("llama", {}, {"recompute": True}),
        "llama, tied": ("llama", TIED, {}),
        "chatglm2": ("chatglm_v2", {}, {}),
        "chatglm2, recompute": ("chatglm_v2", {}, {"recompute": True}),
        "bloom": ("bloom", {}, {}),
        "bloom, recompute": ("bloom", {}, {"recompute": True}),
    },
    Layout(pipeline=3, virtual_stages=2): {
        "llama": ("llama", {"num_hidden_layers": 6}, {}),
        "llama, tied": ("llama", {"num_hidden_layers": 6, **TIED}, {}),
        "chatglm2": ("chatglm_v2", {"num_layers": 6}, {}),
        "bloom": ("bloom", {"n_layer": 6}, {}),
    },
}


@pytest.mark.parametrize("layout", CASES, ids=str)
def test_a_layout_is_one_process(tmp_path, layout):
    cases = {}
    for number, (name, (family, overrides, fields)) in enumerate(CASES[layout].items()):
        cases[name] = (family, WRITERS[family](tmp_path / str(number), **overrides), fields)
    ranks = run_ranks(steps, layout.world_size, cases, layout)
    for name, case in cases.items():
        alone = step(*case, Layout(), rows(layout))
        assert_covers([rank[name]["before"] for rank in ranks], alone["before"], 0, name)
        losses = [rank[name]["loss"] for rank in ranks]
        assert losses == pytest.approx([alone["loss"]] * layout.world_size, abs=2e-6), name
        assert_covers([rank[name]["after"] for rank in ranks], alone["after"], 3e-6, name)


@pytest.mark.parametrize("layout", [Layout(tensor=2), Layout(tensor=2, pipeline=2)], ids=str)
def test_a_layout_loads_what_one_process_saved(tmp_path, layout):
    cases = {}
    for family, odd in (("llama", "vocab_size"), ("chatglm_v2", "padded_vocab_size"), ("bloom", "vocab_size")):
        folder, saved = WRITERS[family](tmp_path / family / "config", **{odd: 121}), tmp_path / family / "saved"
        build(folder, seed=9).save_pretrained(str(saved), safe_serialization=True, max_shard_size="100KB")
        cases[family] = (family, saved, {"load": True})
    cases["fused"] = ("llama", cases["llama"][1], {"load": True, **FUSED})
    ranks = run_ranks(steps, layout.world_size, cases, layout)
    for name, case in cases.items():
        alone = step(*case, Layout(), rows(layout))
        assert_covers([rank[name]["before"] for rank in ranks], alone["before"], 0, name)
