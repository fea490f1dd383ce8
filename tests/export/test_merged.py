"""An adapter merged into the tensors of a source equals, bit for bit, one merged in the network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.peft.method import Method
from tests.helpers.finetune_jobs import finetune, make_instructions
from tests.helpers.models.adapters import METHODS, attached, base_values, set_trained
from tests.helpers.models.networks import WRITERS, as_hugging_face, build, weights

TARGETS = {
    "llama": ("q_proj", "down_proj"),
    "chatglm_v2": ("query_key_value", "dense_4h_to_h"),
    "bloom": ("query_key_value", "dense_4h_to_h"),
    "opt": ("v_proj", "linear1"),
    "qwen2": (),
    "mistral": ("v_proj", "gate_proj"),
}


def base_folder(folder: Path, family: str, dtype: str = "float32", **shape: Any) -> Path:
    """A model folder with random weights under Hugging Face's names."""
    from paddle_llm.models.weights.files import write_safetensors

    WRITERS[family](folder, **shape)
    found = as_hugging_face(weights(build(folder), family), family)
    if dtype == "bfloat16":
        found = {name: (value.view(np.uint32) >> 16).astype(np.uint16) for name, value in found.items()}
    write_safetensors(folder / "model.safetensors", found, format="pt")
    return folder


def network_of(folder: Path, dtype: str, **flags: Any) -> Any:
    from paddle_llm.config.run_config import RunConfig
    from paddle_llm.models.build import build_model

    run = RunConfig(model_name_or_path=str(folder), max_seq_length=16, continue_training=True, device="cpu", **flags)
    return build_model(run, Layout(), dtype=dtype)


def trained_adapter(folder: Path, base: Path, method: Method, dtype: str = "float32", **flags: Any) -> Path:
    """Write an adapter of `base` with random values."""
    from paddle_llm.peft.save import save_adapter

    model = attached(network_of(base, dtype, **flags), method)
    set_trained(model)
    save_adapter(model, Layout(), folder, base=str(base))
    return folder


def merged_in_network(base: Path, adapter: Path, dtype: str, **flags: Any) -> dict[str, np.ndarray]:
    from paddle_llm.peft.merge import merge
    from paddle_llm.peft.save import load_adapter

    model = load_adapter(network_of(base, dtype, **flags), adapter, Layout())
    merge(model)
    return base_values(model)


def same(source: Any, wanted: dict[str, np.ndarray]) -> None:
    assert set(source.names()) == set(wanted)
    for name in source.names():
        assert np.array_equal(source.read(name), wanted[name]), name


@pytest.mark.parametrize(
    "kind, dtype, trained_in",
    [
        *(
            (kind, dtype, dtype)
            for kind in ("lora", "rslora", "adalora", "retrained")
            for dtype in ("float32", "bfloat16")
        ),
        ("retrained", "bfloat16", "float32"),  # its matrices are rounded before they are multiplied
    ],
)
def test_merging_equals_merging_in_the_network(kind, dtype, trained_in, tmp_path):
    from paddle_llm.export.source.open import open_source

    method = {
        "lora": Method("lora", rank=4, targets=("q_proj", "v_proj")),
        "rslora": Method("lora", rank=3, alpha=5.0, rslora=True),
        "adalora": Method("adalora", rank=2, initial_rank=3),
        "retrained": Method("lora", rank=4, modules_to_save=("embed_tokens", "layers.0.mlp.up_proj", "norm")),
    }[kind]
    base = base_folder(tmp_path / "base", "llama", dtype, num_key_value_heads=2)
    adapter = trained_adapter(tmp_path / "adapter", base, method, trained_in)
    source = open_source(adapter)  # the base is named in it
    wanted = merged_in_network(base, adapter, dtype)
    same(source, wanted)
    assert {source.dtype(name) for name in source.names()} == {dtype}
    changed = [name for name in wanted if not np.array_equal(open_source(base).read(name), wanted[name])]
    assert "llama.layers.3.self_attn.q_proj.weight" in changed and len(changed) < len(wanted)


@pytest.mark.parametrize("family", TARGETS)
def test_every_family(family, tmp_path):
    from paddle_llm.export.source.open import open_source

    base = base_folder(tmp_path / "base", family)
    adapter = trained_adapter(tmp_path / "adapter", base, Method("lora", rank=4, targets=TARGETS[family]))
    same(open_source(base, adapter=adapter), merged_in_network(base, adapter, "float32"))


def test_an_adapter_of_fused_matrices_is_split(tmp_path):
    """It was trained with --fuse_attention_qkv and _ffn, and its base has separate matrices."""
    from paddle_llm.export.source.open import open_source
    from paddle_llm.models.weights.names import fused_pieces

    fused = {"fuse_attention_qkv": True, "fuse_attention_ffn": True}
    base = base_folder(tmp_path / "base", "llama", num_key_value_heads=2)
    method = Method("lora", rank=4, modules_to_save=("layers.1.mlp.gate_up_fused_proj",))
    adapter = trained_adapter(tmp_path / "adapter", base, method, **fused)
    wanted = merged_in_network(base, adapter, "float32", **fused)
    source = open_source(adapter)
    for name in source.names():
        whole = wanted.get(name)
        if whole is None:
            pieces = fused_pieces("llama", name, source.config)
            cuts = [wanted[one.source][:, one.source_start : one.source_start + one.stop - one.start] for one in pieces]
            whole = np.concatenate(cuts, axis=1)
        assert np.array_equal(source.read(name), whole), name


class Held:
    """Tensors in memory."""

    def __init__(self, values: dict[str, np.ndarray]):
        self._values = values

    def names(self) -> list[str]:
        return list(self._values)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._values[name].shape

    def dtype(self, name: str) -> str:
        return self._values[name].dtype.name

    def read(self, name: str) -> np.ndarray:
        return self._values[name]


def test_a_base_of_fused_matrices_takes_an_adapter_of_separate_ones(tmp_path):
    """A checkpoint of a run with --fuse_attention_qkv has fused matrices."""
    from paddle_llm.export.source.merged_adapter import merge_adapter
    from paddle_llm.export.source.open import open_source

    base = base_folder(tmp_path / "base", "llama", num_key_value_heads=2)
    method = Method("lora", rank=4, targets=("k_proj", "gate_proj"), modules_to_save=("layers.1.mlp.up_proj",))
    adapter = trained_adapter(tmp_path / "adapter", base, method)
    fused = base_values(network_of(base, "float32", fuse_attention_qkv=True, fuse_attention_ffn=True))
    assert "llama.layers.0.self_attn.qkv_proj.weight" in fused
    source = replace(open_source(base), tensors=Held(fused))
    same(replace(source, tensors=merge_adapter(source, adapter)), merged_in_network(base, adapter, "float32"))


@pytest.mark.parametrize("method", ["prefix", "adapter", "prompt"])
def test_methods_that_cannot_be_merged_are_refused(method, tmp_path):
    from paddle_llm.export.source.open import open_source

    base = base_folder(tmp_path / "base", "llama")
    adapter = trained_adapter(tmp_path / "adapter", base, METHODS[method])
    with pytest.raises(UserError, match="cannot be merged into the weights.*generate --adapter"):
        open_source(adapter)


def test_another_base_is_refused(tmp_path):
    from paddle_llm.export.source.open import open_source

    base = base_folder(tmp_path / "base", "llama")
    adapter = trained_adapter(tmp_path / "adapter", base, METHODS["lora"])
    for other in ({"num_hidden_layers": 2}, {"vocab_size": 120}, {"hidden_size": 32}):
        wrong = base_folder(tmp_path / next(iter(other)), "llama", **other)
        with pytest.raises(UserError, match="another base"):
            open_source(wrong, adapter=adapter)
    narrow = base_folder(
        tmp_path / "narrow", "llama", intermediate_size=160
    )  # adapter_config.json does not record this size
    with pytest.raises(UserError, match=r"mlp.*base has shape \[(64, 160|160, 64)\]"):
        open_source(narrow, adapter=adapter)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"base.*--adapter"):
        open_source(adapter)


def test_an_incomplete_adapter_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    from paddle_llm.export.source.open import open_source

    base = base_folder(tmp_path / "base", "llama")
    adapter = trained_adapter(tmp_path / "adapter", base, METHODS["lora"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    for lost in ("llama.layers.1.self_attn.q_proj.lora_B", "llama.layers.1.self_attn.q_proj.lora_A"):
        save_file(
            {name: value for name, value in tensors.items() if name != lost}, adapter / "adapter_model.safetensors"
        )
        with pytest.raises(UserError, match="is incomplete: .* Copy the adapter again"):
            open_source(adapter)


@pytest.mark.parametrize(
    "method, tensor",
    [("lora", 1), *(pytest.param(m, 2, marks=pytest.mark.slow) for m in ("lora", "adalora", "freeze"))],
)
def test_a_checkpoint_merges_like_the_folder_of_its_run(method, tensor, tmp_path):
    """The last checkpoint, over the base that the run's record names; and the model that the run merged itself."""
    from paddle_llm.export.source.open import open_source
    from tests.export.test_layout_files import tensors_in

    folder = make_instructions(tmp_path)
    base_folder(folder / "llama", "llama", vocab_size=312, num_key_value_heads=2)
    flags = {"freeze_layers": 1} if method == "freeze" else {method: True, "merge_weights": True}
    quick = {"do_eval": False, "evaluation_strategy": "no", "max_steps": 3, "continue_training": True}
    finetune(folder, tmp_path / "out", tensor, tensor_parallel_degree=tensor, **quick, **flags)
    source = open_source(tmp_path / "out/checkpoint-3")
    assert source.adapter == tmp_path / "out/checkpoint-3" and source.folder == folder / "llama"
    wanted = tensors_in(tmp_path / "out/model")
    assert set(source.names()) == set(wanted)
    for name in wanted:
        read = source.read(name)
        if tensor == 1 or method == "freeze":
            assert np.array_equal(read, wanted[name]), name
        else:  # ranks multiply narrower matrices, which rounds in another order
            np.testing.assert_allclose(read, wanted[name], rtol=0, atol=2e-7, err_msg=name)
    if method != "freeze":
        adapter = open_source(tmp_path / "out/adapter")
        assert all(np.array_equal(adapter.read(name), source.read(name)) for name in wanted)
        described = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
        assert described["base"] == str(folder / "llama")
