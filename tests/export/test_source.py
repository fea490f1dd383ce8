"""A source returns the same tensors under the same names, bit for bit, for every storage format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES
from paddle_llm.models.weights.files import write_safetensors
from tests.export.folders import same_bits, write_config, write_native
from tests.helpers.models.networks import as_hugging_face


def opened(folder: Path, **options):
    from paddle_llm.export.source.open import open_source

    return open_source(folder, **options)


def assert_holds(source, expected) -> None:
    assert source.names() == list(expected)
    for name, value in expected.items():
        assert source.shape(name) == value.shape
        assert same_bits(np.ascontiguousarray(source.read(name)), value), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_stay_as_they_are_stored(tmp_path, dtype):
    weights = write_native(tmp_path, "llama", dtype)
    source = opened(tmp_path)
    assert {source.dtype(name) for name in source.names()} == {dtype}
    assert_holds(source, weights)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["paddlenlp", "hugging_face", "bare", "pdparams"])
def test_every_form_is_the_same_source(tmp_path, family, form):
    weights = write_native(tmp_path, family)
    file = tmp_path / "model.safetensors"
    if form == "hugging_face":
        save_file(as_hugging_face(weights, family), file, metadata={"format": "pt"})
    elif form == "bare":  # PaddleNLP's names of the network without its head
        write_safetensors(
            file, {name.removeprefix(FAMILIES[family].base_prefix): value for name, value in weights.items()}
        )
    elif form == "pdparams":
        import paddle

        file.unlink()
        paddle.save({name: paddle.to_tensor(v) for name, v in weights.items()}, str(tmp_path / "model_state.pdparams"))
    source = opened(tmp_path)
    assert_holds(source, weights)
    assert source.config.vocab_size == 129 and source.facts.vocab_size == 129


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_of_paddle_are_mapped_or_read_by_paddle(tmp_path, protocol):
    """With the old protocol 2, no range of the file holds the bytes of a tensor."""
    import paddle

    weights = write_native(tmp_path, "llama", "bfloat16", hidden_size=256)
    (tmp_path / "model.safetensors").unlink()
    saved = {name: paddle.to_tensor(bits).view("bfloat16") for name, bits in weights.items()}
    paddle.save(saved, str(tmp_path / "model_state.pdparams"), protocol=protocol)
    source = opened(tmp_path)
    assert_holds(source, weights)
    base = source.read("llama.layers.0.self_attn.o_proj.weight")
    while not isinstance(base, np.memmap) and getattr(base, "base", None) is not None:
        base = base.base
    assert isinstance(base, np.memmap) == (protocol == 4)


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_fused_projections_are_split(tmp_path, heads):
    weights = write_native(tmp_path / "apart", "llama", num_key_value_heads=heads)
    apart = opened(tmp_path / "apart")
    write_config(
        tmp_path / "fused", "llama", num_key_value_heads=heads, fuse_attention_qkv=True, fuse_attention_ffn=True
    )
    fused = {name: value for name, value in weights.items() if not name.endswith(("q_proj.weight", "gate_proj.weight"))}
    for layer in range(2):
        for kind, parts in (("self_attn.qkv", "qkv"), ("mlp.gate_up_fused", ("gate", "up"))):
            block = kind.partition(".")[0]
            for part in parts:
                fused.pop(f"llama.layers.{layer}.{block}.{part}_proj.weight", None)
            name = f"llama.layers.{layer}.{kind}_proj.weight"
            fused[name] = np.ascontiguousarray(apart.read(name))  # a source answers in the other fusion, too
    by_hand = np.concatenate([weights[f"llama.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up")], axis=1)
    assert same_bits(fused["llama.layers.0.mlp.gate_up_fused_proj.weight"], by_hand)
    write_safetensors(tmp_path / "fused" / "model.safetensors", fused)
    source = opened(tmp_path / "fused")
    assert not source.config.fuse_attention_qkv
    assert_holds(source, weights)


def test_a_tied_head_is_not_a_separate_weight(tmp_path):
    weights = write_native(tmp_path, "llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in weights
    table = weights["llama.embed_tokens.weight"]
    write_safetensors(tmp_path / "model.safetensors", {**weights, "lm_head.weight": table})
    assert_holds(opened(tmp_path), weights)
    write_safetensors(tmp_path / "model.safetensors", {**weights, "lm_head.weight": table + 1})
    with pytest.raises(UserError, match=r"lm_head.weight differs from llama.embed_tokens"):
        opened(tmp_path)


def test_the_output_folder_of_a_run_is_its_model(tmp_path, capsys):
    weights = write_native(tmp_path / "output" / "model", "llama")
    record = {"arguments": {"chat_template": {"value": "chatml", "from": "flag"}}}
    (tmp_path / "output" / "config.resolved.json").write_text(json.dumps(record))
    (tmp_path / "output" / "model" / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    source = opened(tmp_path / "output")
    assert "using " in capsys.readouterr().err
    assert_holds(source, weights)
    assert source.template == "chatml" and source.generation == {"eos_token_id": [2, 7]} and source.tokenizer is None


def test_the_tokenizer_is_beside_the_weights_or_named(llama, tmp_path):
    write_native(tmp_path, "llama")
    assert opened(llama).tokenizer == llama
    assert opened(tmp_path).tokenizer is None
    assert opened(tmp_path, tokenizer=llama).tokenizer == llama
    with pytest.raises(UserError, match="--tokenizer .* has no tokenizer_config.json"):
        opened(llama, tokenizer=tmp_path)


@pytest.mark.hf
def test_torch_pickles_need_a_flag(tmp_path):
    import torch

    weights = write_native(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    tensors = {name: torch.from_numpy(value) for name, value in as_hugging_face(weights, "llama").items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="--allow_pickle"):
        opened(tmp_path)
    assert_holds(opened(tmp_path, allow_pickle=True), weights)


def without_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["llama.layers.1.mlp.down_proj.weight"], tensors["llama.norm.weight"]
    write_safetensors(folder / "model.safetensors", tensors)


def of_another_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["llama.norm.weight"] = tensors["llama.norm.weight"][:-1]
    write_safetensors(folder / "model.safetensors", tensors)


def in_integers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value.astype(np.int8) for name, value in tensors.items()}, folder / "model.safetensors")


def without_anything(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            without_a_weight,
            r"2 weights are missing: llama.layers.1.mlp.down_proj.weight \[172, 64\], llama.norm.weight",
        ),
        (of_another_shape, r"llama.norm.weight has shape \[63\], config.json requires \[64\]"),
        (in_integers, "stored as I8"),
        (without_anything, "contains no model: it has no config.json"),
    ],
)
def test_an_incomplete_model_is_refused(tmp_path, spoil, message):
    write_native(tmp_path, "llama")
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_a_folder_without_a_model_is_refused_with_a_hint(tmp_path):
    write_native(tmp_path / "output" / "mine" / "model", "llama")
    with pytest.raises(UserError, match=r"contains no model: .* Did you mean .*/mine\?$"):
        opened(tmp_path / "output")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    with pytest.raises(UserError, match=r"contains no model: .* Give a model folder or the output folder of a run\.$"):
        opened(adapter)
    (adapter / "adapter_model.safetensors").touch()
    with pytest.raises(
        UserError, match="is an incomplete adapter: it has adapter_model.safetensors but no adapter_config.json"
    ):
        opened(adapter)
    (adapter / "adapter_config.json").write_text('{"base": "x",\n "method" 1}')
    with pytest.raises(UserError, match="adapter_config.json is not valid JSON: line 2, column 11"):
        opened(adapter)


def test_a_checkpoint_without_a_manifest_is_reported(tmp_path, capsys):
    write_native(tmp_path / "checkpoint-3", "llama")
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    opened(tmp_path / "checkpoint-3")
    assert "checkpoint-3 has no manifest.json" in capsys.readouterr().err


def test_an_adapter_needs_its_base(tmp_path):
    write_native(tmp_path / "model", "llama")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base": "/nowhere/at/all"}))
    with pytest.raises(
        UserError, match=r"Base model /nowhere/at/all of adapter .* was not found .* Give the folder of the base model"
    ):
        opened(adapter)
    with pytest.raises(UserError, match="cannot be added to it. Give the folder of the base model instead of"):
        opened(adapter, adapter=adapter)
    with pytest.raises(UserError, match="is not an adapter"):
        opened(tmp_path / "model", adapter=tmp_path / "model")
    with pytest.raises(UserError, match="is not a folder"):
        opened(tmp_path / "absent")


def test_weights_in_float64_are_read_as_float32(tmp_path, capsys):
    weights = write_native(tmp_path, "llama")
    tensors = {name: value.astype(np.float64) for name, value in as_hugging_face(weights, "llama").items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_holds(opened(tmp_path), weights)
    assert "stored in float64 and read as float32" in capsys.readouterr().err
