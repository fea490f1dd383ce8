"""The small config of a cluster's config keeps the kind of its layout and all divisibility constraints."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.config.reader import Resolved
from paddle_llm.core.errors import ConfigError, UserError
from paddle_llm.families.shape import facts_from_dict
from paddle_llm.rehearse.oracle import reference_key
from paddle_llm.rehearse.rehearsal import cases_of
from paddle_llm.rehearse.shrink.config import Shrunk, read_cluster_config, shrink
from paddle_llm.rehearse.shrink.samples import global_batch, sample_counts, synthetic_samples
from paddle_llm.rehearse.shrink.settings import ADAM_EPSILON, LEARNING_RATE
from paddle_llm.rehearse.shrink.small_model import VocabularyMap, small_model
from paddle_llm.rehearse.shrink.sub_layouts import sub_layouts_of
from tests.helpers.models.tiny import write_bloom, write_chatglm, write_chatglm2, write_llama

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "pretrain").glob("*.json"))
DIMENSIONS = ("data", "sharding", "tensor", "pipeline")


def world_size(raw: dict[str, Any]) -> int:
    return math.prod(max(raw.get(f"{name}_parallel_degree", 1), 1) for name in DIMENSIONS)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def active(layout: Layout) -> set[str]:
    return {name for name in DIMENSIONS if getattr(layout, name) > 1}


def sign(number: int) -> int:
    return (number > 0) - (number < 0)


def check_kind(real: Resolved, small: Shrunk) -> None:
    """Check the relations that hold between any config and its rehearsal."""
    facts, tiny = real.facts, small.model.facts
    assert facts is not None
    assert set().union(*(active(sub_layout.layout) for sub_layout in small.configs)) == active(real.layout)
    assert tiny.model_type == facts.model_type
    assert tiny.tie_word_embeddings == facts.tie_word_embeddings
    assert sign(facts.num_attention_heads - facts.num_key_value_heads) == sign(
        tiny.num_attention_heads - tiny.num_key_value_heads
    )
    for sub_layout in small.configs:
        check_sub_layout(real, small, sub_layout)


def check_sub_layout(real: Resolved, small: Shrunk, shrunk: Resolved) -> None:
    """Check the config of one sub-layout; see `check_kind`."""
    facts, tiny, layout, config = real.facts, small.model.facts, shrunk.layout, shrunk.config
    assert facts is not None
    assert shrunk.facts == tiny  # read from the folder by the real reader
    if layout.tensor > 1:
        was, now = real.layout.tensor, layout.tensor
        assert layout.sequence_parallel == real.layout.sequence_parallel
        for name in ("num_key_value_heads", "vocab_size", "intermediate_size", "num_attention_heads"):
            assert (getattr(facts, name) % was == 0) == (getattr(tiny, name) % now == 0), name
        assert sign(facts.num_key_value_heads - was) == sign(tiny.num_key_value_heads - now)
        assert (real.config.max_seq_length % was == 0) == (config.max_seq_length % now == 0)
    if layout.pipeline > 1:
        was, now = real.layout.pipeline, layout.pipeline
        assert (layout.virtual_stages > 1) == (real.layout.virtual_stages > 1)
        assert (facts.num_hidden_layers % was == 0) == (tiny.num_hidden_layers % now == 0)
        assert sign(real.config.gradient_accumulation_steps - was) == sign(config.gradient_accumulation_steps - now)
    if layout.sharding > 1:
        assert config.sharding == real.config.sharding
        assert layout.sharding_stage == real.layout.sharding_stage
    assert (config.gradient_accumulation_steps > 1) == (real.config.gradient_accumulation_steps > 1)
    assert (config.per_device_train_batch_size > 1) == (real.config.per_device_train_batch_size > 1)
    kept = ("recompute", "recompute_granularity", "weight_decay", "adam_beta1", "adam_beta2", "seed", "do_eval")
    for name in (*kept, "fuse_attention_qkv", "fuse_attention_ffn", "pipeline_parallel_config"):
        if name in real.requested or real.origins[name] != "default":
            assert getattr(config, name) == getattr(real.config, name), name
    assert (config.max_grad_norm > 0) == (real.config.max_grad_norm > 0)
    assert (config.learning_rate, config.adam_epsilon) == (LEARNING_RATE, ADAM_EPSILON)
    assert (config.device, config.bf16, config.max_steps) == ("cpu", False, 3)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_config_keeps_its_kind(path: Path, tmp_path: Path) -> None:
    real = read_cluster_config([str(path)], world_size(json.loads(path.read_text())))
    small = shrink(real, 8, 3, tmp_path)
    check_kind(real, small)
    for sub_layout in small.configs:
        assert sub_layout.layout.world_size <= 8
        assert small.model.facts.hidden_size <= 512


def test_a_70b_config_for_64_gpus_becomes_eight_ranks(tmp_path: Path) -> None:
    real = read_cluster_config(["configs/pretrain/llama_2_70b_tp8_pp4_sharding2_stage1.json"], 64)
    (sub_layout,) = shrink(real, 8, 3, tmp_path).configs
    assert str(sub_layout.layout) == "sharding2(stage1) x tp2+sp x pp2"


ALL_FOUR = Layout(2, 2, 8, 4, sharding_stage=2)


@pytest.mark.parametrize(
    ("layout", "ranks", "expected"),
    [
        (Layout(), 8, ["one process"]),
        (ALL_FOUR, 16, ["dp2 x sharding2(stage2) x tp2 x pp2"]),
        (ALL_FOUR, 8, ["sharding2(stage2) x tp2 x pp2", "dp2 x tp2 x pp2", "dp2 x sharding2(stage2)"]),
        (Layout(tensor=8, pipeline=4), 8, ["tp2 x pp4"]),  # a stage that is neither the first nor the last
        (Layout(tensor=8, pipeline=2), 8, ["tp4 x pp2"]),
        (Layout(tensor=2, sharding=16, sharding_stage=1), 8, ["sharding4(stage1) x tp2"]),
        (Layout(tensor=3, pipeline=5), 15, ["tp3 x pp5"]),
        (Layout(tensor=8, pipeline=4, virtual_stages=5), 8, ["tp2 x pp4v2"]),
        (Layout(tensor=8, pipeline=4, virtual_stages=5), 6, ["tp2 x pp3v2"]),
        (Layout(tensor=8, pipeline=4, virtual_stages=5), 4, ["tp2", "pp3v2"]),
        (Layout(data=2, tensor=2, pipeline=2), 4, ["tp2 x pp2", "dp2 x pp2", "dp2 x tp2"]),
    ],
    ids=lambda value: str(value) if isinstance(value, Layout) else None,
)
def test_a_large_layout_is_covered_by_sub_layouts(layout: Layout, ranks: int, expected: list[str]) -> None:
    found = sub_layouts_of(layout, ranks)
    assert [str(sub_layout) for sub_layout in found.layouts] == expected
    assert all(sub_layout.world_size <= ranks for sub_layout in found.layouts)


@pytest.mark.parametrize(
    ("layout", "ranks"),
    [(ALL_FOUR, ranks) for ranks in (2, 3, 4, 6, 8, 12, 15)]
    + [(Layout(data=4, tensor=2, pipeline=4, virtual_stages=2), ranks) for ranks in (3, 4, 6, 8, 12, 15)],
    ids=str,
)
def test_every_pair_of_dimensions_is_covered_or_reported(layout: Layout, ranks: int) -> None:
    found = sub_layouts_of(layout, ranks)
    printed = "\n".join(found.remarks)
    short = {"data": "dp", "sharding": "sharding", "tensor": "tp", "pipeline": "pp"}
    least = {name: 3 if name == "pipeline" and layout.virtual_stages > 1 else 2 for name in DIMENSIONS}
    for one, other in combinations(sorted(active(layout), key=DIMENSIONS.index), 2):
        covered = any({one, other} <= active(sub_layout) for sub_layout in found.layouts)
        assert covered == (least[one] * least[other] <= ranks)
        assert covered != (
            f"{short[other]} with {short[one]}" in printed or f"{short[one]} with {short[other]}" in printed
        )
    assert set().union(*map(active, found.layouts)) == active(layout)


def test_dimensions_that_are_not_covered_are_reported() -> None:
    assert "16 ranks" in sub_layouts_of(ALL_FOUR, 8).remarks[0]
    assert "--ranks 16" in sub_layouts_of(ALL_FOUR, 8).remarks[0]
    (remark,) = sub_layouts_of(Layout(tensor=8, pipeline=4, sharding=2, sharding_stage=1), 8).remarks
    assert "between the first and the last" in remark
    assert "--ranks 12" in remark
    assert sub_layouts_of(Layout(tensor=8, pipeline=4, sharding=2, sharding_stage=1), 12).remarks == []


@pytest.mark.parametrize(
    ("layout", "ranks", "message"),
    [
        (Layout(tensor=2), 1, "tp needs at least 2 ranks"),
        (Layout(tensor=2, pipeline=4, virtual_stages=2), 2, "virtual stages needs at least 3 ranks"),
    ],
)
def test_too_few_ranks_are_refused(layout: Layout, ranks: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sub_layouts_of(layout, ranks)


def write_run(folder: Path, model: Path, **settings: Any) -> str:
    values = {
        "model_name_or_path": str(model),
        "input_dir": "data",
        "output_dir": str(folder / "output"),
        "do_train": True,
        "max_steps": 100,
        "max_seq_length": 128,
        "bf16": True,
        **settings,
    }
    file = folder / "run.json"
    file.write_text(json.dumps(values))
    return str(file)


TP4, PP4 = {"tensor_parallel_degree": 4}, {"pipeline_parallel_degree": 4, "gradient_accumulation_steps": 8}
LLAMA = {"hidden_size": 768, "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 1000}


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (LLAMA | {"num_key_value_heads": 2}, TP4),  # fewer key-value heads than tensor ranks
        (LLAMA | {"num_key_value_heads": 1}, TP4),
        (LLAMA | {"num_key_value_heads": 6}, TP4),  # more, and not divisible
        (LLAMA | {"num_key_value_heads": 4}, TP4),
        (LLAMA | {"num_attention_heads": 4, "num_key_value_heads": 4}, TP4),  # one head for each rank
        (LLAMA | {"vocab_size": 1001}, TP4),
        (LLAMA | {"vocab_size": 30}, TP4),  # smaller than a rehearsal's, and not divisible by 4 but by 2
        (LLAMA | {"tie_word_embeddings": True}, TP4 | PP4),
        (LLAMA, TP4 | {"sequence_parallel": True, "max_seq_length": 12}),
        (LLAMA, TP4 | {"fuse_attention_qkv": True, "fuse_attention_ffn": True}),
        (LLAMA | {"num_hidden_layers": 10}, PP4),
        (LLAMA, PP4 | {"gradient_accumulation_steps": 2}),
        (LLAMA, PP4 | {"gradient_accumulation_steps": 4}),
        (LLAMA, PP4 | {"gradient_accumulation_steps": 9}),
        (LLAMA | {"num_hidden_layers": 24}, PP4 | {"virtual_pp_degree": 3}),
        (LLAMA, PP4 | {"recompute": True, "no_recompute_layers": [0, 3]}),
        (LLAMA, {"sharding": "stage2", "sharding_parallel_degree": 8, "max_grad_norm": 0.0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("ranks", [4, 8])
def test_unusual_shapes_keep_their_kind(
    tmp_path: Path, model: dict[str, Any], settings: dict[str, Any], ranks: int
) -> None:
    run = write_run(tmp_path, write_llama(tmp_path / "model", **model), **settings)
    real = read_cluster_config([run], world_size(settings))
    check_kind(real, shrink(real, ranks, 3, tmp_path / "small"))


@pytest.mark.parametrize("write", [write_llama, write_chatglm, write_chatglm2, write_bloom], ids=lambda f: f.__name__)
def test_other_keys_of_the_model_are_kept(tmp_path: Path, write) -> None:
    run = write_run(
        tmp_path, write(tmp_path / "model", some_key="kept", vocab_size=1000, padded_vocab_size=1000), **TP4
    )
    if write is write_chatglm2:  # two groups
        run = write_run(tmp_path, tmp_path / "model", tensor_parallel_degree=2)
    real = read_cluster_config([run], 4 if write is not write_chatglm2 else 2)
    small = shrink(real, 4, 3, tmp_path / "small").model.facts.raw
    assert real.facts is not None
    before = real.facts.raw
    assert small.keys() == before.keys()
    changed = {key for key in small if small[key] != before[key]}
    numbers = (
        "hidden",
        "head",
        "group",
        "channels",
        "layer",
        "inner",
        "ffn",
        "intermediate",
        "vocab",
        "length",
        "position",
    )
    assert all(key.endswith("_token_id") or any(word in key for word in numbers) for key in changed), changed
    ids = [value for key, value in small.items() if key.endswith("_token_id")]
    assert len(set(ids)) == len({value for key, value in before.items() if key.endswith("_token_id")})
    assert max(ids) < min(value for key, value in small.items() if key.endswith("vocab_size"))


def test_scaled_rotary_embeddings_still_exceed_their_table(tmp_path: Path) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    model = write_llama(tmp_path / "model", max_position_embeddings=64, rope_scaling=scaling)
    real = read_cluster_config([write_run(tmp_path, model, **TP4)], 4)
    small = shrink(real, 4, 3, tmp_path / "small")
    assert small.model.facts.raw["rope_scaling"] == scaling
    assert small.model.facts.max_position_embeddings == small.model.sequence // 2


@pytest.mark.parametrize(("width", "expected"), [(1024, 1), (512, 2)])
def test_the_width_of_opts_embeddings_is_scaled(width: int, expected: int) -> None:
    raw = {
        "model_type": "opt",
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "ffn_dim": 4096,
    }
    raw |= {"vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": width}
    small = small_model(facts_from_dict(raw, where="here"), Layout(tensor=4), 2048, 2, 1, 1).facts
    assert small.hidden_size == expected * small.raw["word_embed_proj_dim"]


@pytest.mark.parametrize(("window", "expected"), [(4096, 32), (2048, 16), (8192, 64), (None, None)])
def test_an_attention_window_is_the_same_share_of_the_sequence(window: int | None, expected: int | None) -> None:
    raw = {
        "model_type": "mistral",
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_hidden_layers": 24,
        "intermediate_size": 4096,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "sliding_window": window,
    }
    small = small_model(facts_from_dict(raw, where="here"), Layout(tensor=2), 4096, 2, 1, 1)
    assert (small.sequence, small.facts.raw["sliding_window"]) == (32, expected)


def test_folded_ids_keep_special_tokens_distinct() -> None:
    vocabulary_map = VocabularyMap([0, 2, 130001, 130004], 64)
    ids = np.array([[0, 1, 2], [130001, 130004, 5000]])
    found = vocabulary_map(ids)
    assert found.shape == ids.shape
    assert 0 <= found.min() <= found.max() < 64
    assert found[0, 0] == 0
    assert found[0, 2] == 2
    assert len(set(vocabulary_map.special.values())) == 4
    everything = vocabulary_map(np.arange(130528))
    for token, place in vocabulary_map.special.items():
        assert np.flatnonzero(everything == place).tolist() == [token]
    assert set(everything) == set(range(64))
    assert not set(vocabulary_map.ordinary_ids) & set(vocabulary_map.special.values())


def test_sub_layouts_share_their_reference(tmp_path: Path) -> None:
    settings = {"tensor_parallel_degree": 2, "pipeline_parallel_degree": 2, "data_parallel_degree": 2}
    settings |= {
        "sharding": "stage2",
        "sharding_parallel_degree": 2,
        "gradient_accumulation_steps": 64,
        "do_eval": True,
    }
    real = read_cluster_config([write_run(tmp_path, write_llama(tmp_path / "model"), **settings)], 16)
    small = shrink(real, 8, 3, tmp_path / "small")
    assert len(small.configs) == 3
    assert len({global_batch(sub_layout) for sub_layout in small.configs}) == 1
    wanted = sample_counts(small.configs)
    cases = cases_of(small, synthetic_samples(small.model, wanted, seed=1))
    assert len({reference_key(case) for case in cases}) == 1
    assert all(len(case.train) == 3 * case.global_batch for case in cases)
    batch = [
        sub_layout.config.per_device_eval_batch_size * sub_layout.layout.data_world_size for sub_layout in small.configs
    ]
    assert all(len(case.evaluation) % size for case, size in zip(cases, batch, strict=True))  # an uneven last batch


def test_all_mistakes_of_the_config_are_reported(tmp_path: Path) -> None:
    run = write_run(tmp_path, write_llama(tmp_path / "model"), tensor_parallel_degree=3)
    with pytest.raises(ConfigError) as error:
        read_cluster_config([run, "--learning_rat", "1"], 3)
    unknown, heads, width = error.value.problems
    assert "Did you mean --learning_rate?" in unknown
    assert "attention heads" in heads
    assert "feed-forward" in width


def test_dropout_and_settings_unsupported_on_the_cpu_are_reported(tmp_path: Path) -> None:
    model = write_bloom(tmp_path / "model", hidden_dropout=0.1)
    real = read_cluster_config(
        [write_run(tmp_path, model, attention_probs_dropout_prob=0.2, continue_training=False)], 1
    )
    changes = {one.what: (one.real, one.rehearsed) for one in shrink(real, 1, 3, tmp_path / "small").changes}
    assert changes["bf16"] == ("true", "false")
    assert changes["hidden_dropout"] == ("0.1", "0")
    assert changes["attention_probs_dropout_prob"] == ("0.2", "0")
    assert changes["max_grad_norm"] == ("1", "0.1")
