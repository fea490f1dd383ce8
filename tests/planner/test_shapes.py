"""The planned weights of every rank equal those of the network that training builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.planner.flops import parameter_count
from paddle_llm.planner.job import Job, Method
from paddle_llm.planner.shapes.owners import largest_first
from paddle_llm.planner.shapes.stages import chunks_of
from paddle_llm.planner.shapes.weights import all_weights, weights_of_stage
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.models.networks import WRITERS
from tests.helpers.models.tiny import write_llama, write_opt
from tests.planner.shape_ranks import differences

MODELS = Path(__file__).parents[2] / "configs" / "models"
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": True, "lora_rank": 4},
    "lora on two": {"lora": True, "lora_target_modules": ["q_proj", ".*down_proj"], "modules_to_save": ["lm_head"]},
    "dora": {"lora": True, "dora": True},
    "adalora": {"adalora": True, "lora_rank": 2},
    "prefix": {"prefix_tuning": True, "num_prefix_tokens": 5},
    "projected prefix": {"prefix_tuning": True, "num_prefix_tokens": 5, "prefix_projection": True},
    "prompt": {"prompt_tuning": True, "num_prompt_tokens": 3},
    "adapter": {"adapter": True, "adapter_size": 4},
    "freeze": {"freeze_layers": 2, "trainable_modules": ["norm"]},
}
# An odd vocabulary, which tensor parallelism pads.
ODD = {"vocab_size": 131}


def case(folder: Path, family: str, method: str, **overrides: Any) -> tuple[str, Path, dict[str, Any]]:
    name = "_".join([family, method.replace(" ", "_"), *(f"{key}{value}" for key, value in overrides.items())])
    return family, WRITERS[family](folder / name, **overrides), METHODS[method]


def all_equal(cases: dict[str, tuple[str, Path, dict[str, Any]]], layout: Layout) -> bool:
    found = run_ranks(differences, layout.world_size, cases, layout)
    wrong = {name: lines for rank in found for name, lines in rank.items() if lines}
    assert not wrong
    assert all(rank.keys() == cases.keys() for rank in found)
    return True


def test_weights_in_one_process(tmp_path: Path) -> None:
    cases = {family: case(tmp_path, family, "full") for family in WRITERS}
    cases |= {f"{family} lora": case(tmp_path, family, "lora") for family in WRITERS}
    cases |= {f"{family} prefix": case(tmp_path, family, "prefix") for family in WRITERS}
    cases |= {method: case(tmp_path, "llama", method) for method in METHODS}
    cases["tied"] = case(tmp_path, "llama", "full", tie_word_embeddings=True)
    cases["narrow opt"] = case(tmp_path, "opt", "full", word_embed_proj_dim=32, do_layer_norm_before=False)
    cases["biases"] = case(tmp_path, "chatglm_v2", "lora", add_bias_linear=True)
    cases["one position"] = case(tmp_path, "glm", "adapter", block_position_encoding=False)
    fused = {"fuse_attention_qkv": True, "fuse_attention_ffn": True}
    cases["fused"] = ("llama", write_llama(tmp_path / "fused"), {**fused, "lora": True})
    assert all_equal(cases, Layout())


def test_weights_of_tensor_parallel_stages(tmp_path: Path) -> None:
    """Padded vocabularies, tied heads on two stages, an uneven number of layers, every method that supports a pipeline."""
    layout = Layout(tensor=2, pipeline=2)
    cases = {
        method: case(tmp_path, "llama", method, **ODD) for method in ("lora", "dora", "prefix", "adapter", "freeze")
    }
    cases["lora on two"] = case(tmp_path, "llama", "lora on two")
    cases["uneven"] = case(tmp_path, "llama", "full", num_hidden_layers=5)
    cases["tied"] = case(tmp_path, "llama", "lora", tie_word_embeddings=True)
    cases["qwen2"] = case(tmp_path, "qwen2", "full", num_key_value_heads=2, tie_word_embeddings=True, **ODD)
    cases["chatglm2"] = case(tmp_path, "chatglm_v2", "prefix", padded_vocab_size=131)
    cases["bloom"] = case(tmp_path, "bloom", "lora", **ODD)
    assert all_equal(cases, layout)


def test_weights_of_four_tensor_parallel_ranks(tmp_path: Path) -> None:
    """Two key-value heads that four ranks cannot divide, and the families without a pipeline."""
    layout = Layout(tensor=4)
    shared = {"num_key_value_heads": 2, **ODD}
    cases = {f"shared {name}": case(tmp_path, "llama", name, **shared) for name in ("full", "lora", "dora", "prefix")}
    cases["projected prefix"] = case(tmp_path, "llama", "projected prefix", **shared)
    cases["adalora"] = case(tmp_path, "mistral", "adalora", num_key_value_heads=4, **ODD)
    cases["prompt"] = case(tmp_path, "opt", "prompt", **ODD)
    cases["chatglm"] = case(tmp_path, "chatglm", "lora")
    cases["glm"] = case(tmp_path, "glm", "prefix", **ODD)
    assert all_equal(cases, layout)


def test_layers_of_virtual_stages() -> None:
    chunks = chunks_of(8, Layout(pipeline=2, virtual_stages=2))
    assert [[list(chunk.layers) for chunk in stage] for stage in chunks] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert [chunk.has_embedding for chunk in chunks[0]] == [True, False]
    assert [(chunk.has_norm, chunk.has_head) for chunk in chunks[1]] == [(False, False), (True, True)]


@pytest.mark.parametrize("stages", [2, 3, 4, 7])
@pytest.mark.parametrize("layers", [7, 8, 9, 30])
def test_stages_are_those_of_paddle(layers: int, stages: int) -> None:
    from paddle.distributed.fleet.meta_parallel.parallel_layers.pp_layers import SegmentLayers

    if layers % stages == 0:
        names = ["Embedding", *["Block"] * layers, "Norm", "Head"]
        described = [type(name, (), {}) for name in names]
        bounds = SegmentLayers(described, stages, "layer:Block").do_segment()
    else:
        bounds = SegmentLayers([None] * (layers + 3), stages, "uniform").do_segment()
    found = [chunk for stage in chunks_of(layers, Layout(pipeline=stages)) for chunk in stage]
    assert sum(chunk.has_embedding for chunk in found) == sum(chunk.has_head for chunk in found) == 1
    sizes = [len(chunk.layers) + chunk.has_embedding + chunk.has_norm + chunk.has_head for chunk in found]
    assert sizes == [stop - start for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
    assert [number for chunk in found for number in chunk.layers] == list(range(layers))


@pytest.mark.parametrize("name", ["llama-2-70b", "meta-llama-3-8b", "bloom-7b1", "chatglm2-6b", "opt-1.3b"])
def test_all_ranks_together_hold_the_model(name: str) -> None:
    facts = read_model_facts(MODELS / name)
    for layout in (Layout(), Layout(tensor=2), Layout(tensor=2, pipeline=2)):
        job = Job(model=facts, layout=layout, seq_length=128)
        assert sum(weight.full_size for weight in all_weights(job)) == parameter_count(facts)
    whole = sum(weight.size for weight in weights_of_stage(Job(model=facts, layout=Layout(), seq_length=1), 0))
    assert whole == parameter_count(facts)


def test_methods_follow_fine_tuning_of_one_layer(tmp_path: Path) -> None:
    """LoRA of rank r on a matrix [in, out] has r (in + out) weights; computed by hand for one layer of OPT."""
    facts = read_model_facts(write_opt(tmp_path))
    job = Job(model=facts, layout=Layout(), seq_length=1, method=Method(name="lora", rank=8))
    trained = sum(weight.size for weight in all_weights(job) if weight.trained)
    assert trained == 4 * 8 * (4 * (64 + 64) + (64 + 160) + (160 + 64))


def test_the_largest_weight_goes_to_the_emptiest_rank() -> None:
    assert largest_first([1, 5, 3, 3], 2) == [0, 0, 1, 1]
    assert largest_first([2, 2, 2], 2) == [0, 1, 0]
    assert largest_first([2, 2], 2, [3, 0]) == [1, 1]
