"""Load Hugging Face's and PaddleNLP's files, single and sharded, into the same network; report broken folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES
from paddle_llm.models.build import build_model
from tests.helpers.models import tiny
from tests.helpers.models.networks import WRITERS, as_hugging_face, build, weights


def assert_same(model, expected, family):
    loaded = weights(model, family)
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face_names_and_transposes_load(tmp_path, family):
    folder = WRITERS[family](tmp_path)
    expected = weights(build(folder, seed=7), family)
    save_file(as_hugging_face(expected, family), folder / "model.safetensors", metadata={"format": "pt"})
    assert_same(build(folder, load=True), expected, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_paddlenlp_saves_loads(tmp_path, family):
    folder = WRITERS[family](tmp_path / "config")
    model = build(folder, seed=7)
    model.save_pretrained(str(tmp_path / "pickled"), safe_serialization=False)
    model.save_pretrained(str(tmp_path / "sharded"), safe_serialization=True, max_shard_size="100KB")
    assert (tmp_path / "pickled" / "model_state.pdparams").is_file()
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    for saved in ("pickled", "sharded"):
        assert_same(build(tmp_path / saved, load=True), weights(model, family), family)


def test_bf16_and_shards_of_hugging_face_load(tmp_path):
    folder = tiny.write_llama(tmp_path)
    model = build(folder, seed=7)
    tensors = as_hugging_face(weights(model, "llama"), "llama")
    halves = {name: (value.view(np.uint32) >> 16).astype(np.uint16) for name, value in tensors.items()}
    index = {}
    for number, part in enumerate((list(halves)[::2], list(halves)[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        _save_bf16({name: halves[name] for name in part}, folder / file)
        index.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    loaded = as_hugging_face(weights(build(folder, load=True), "llama"), "llama")
    for name, half in halves.items():
        np.testing.assert_array_equal(loaded[name].view(np.uint32), half.astype(np.uint32) << 16, err_msg=name)


@pytest.mark.parametrize("safe", [True, False])
def test_bf16_as_paddlenlp_saves_it_loads(tmp_path, safe):
    folder = tiny.write_llama(tmp_path / "config")
    run = RunConfig(model_name_or_path=str(folder), max_seq_length=16, device="cpu")
    model = build_model(run, Layout(), dtype="bfloat16")
    model.save_pretrained(str(tmp_path / "saved"), safe_serialization=safe)
    loaded = build(tmp_path / "saved", load=True)
    for (name, one), (_, two) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        np.testing.assert_array_equal(one.astype("float32").numpy(), two.numpy(), err_msg=name)


def _save_bf16(tensors, file):
    """Write uint16 arrays as BF16, which the numpy writer of safetensors does not support."""
    save_file(tensors, file)
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"U16"', b'"BF16"')
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_fused_and_separate_projections_are_the_same_network(tmp_path, heads):
    folder = tiny.write_llama(tmp_path / "plain", num_key_value_heads=heads)
    plain = build(folder, seed=7)
    plain.save_pretrained(str(tmp_path / "saved"), safe_serialization=True)
    fused = build(tmp_path / "saved", load=True, fuse_attention_qkv=True, fuse_attention_ffn=True)
    assert any("qkv_proj" in name for name in fused.state_dict())
    ids = paddle.to_tensor(np.arange(20).reshape(2, 10))
    np.testing.assert_allclose(plain(ids)[0].numpy(), fused(ids)[0].numpy(), atol=1e-6)
    fused.save_pretrained(str(tmp_path / "fused"), safe_serialization=True)
    again = build(tmp_path / "fused", load=True, fuse_attention_qkv=False, fuse_attention_ffn=False)
    assert_same(again, weights(plain, "llama"), "llama")


def test_missing_weights_are_all_named_with_their_shapes(tmp_path):
    folder = _saved_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"2 weights are missing") as error:
        build(folder, load=True)
    assert "model.layers.1.mlp.up_proj.weight [64, 172]" in str(error.value)
    assert "model.norm.weight [64]" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ("", "module.", "'module', which DistributedDataParallel"),
        ("layers.1", "layers.1._fsdp_wrapped_module", "FSDP"),
        ("", "_orig_mod.", "torch.compile"),
        ("", "base_model.model.", "merge_and_unload"),
        ("q_proj.", "q_proj.base_layer.", "merge_and_unload"),
    ],
)
def test_names_that_a_wrapper_added_are_refused_with_the_cause(old, new, cause, tmp_path):
    folder = _saved_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file({name.replace(old, new, 1): value for name, value in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=cause):
        build(folder, load=True)


def test_a_checkpoint_with_only_lora_is_named_as_such(tmp_path):
    folder = _saved_llama(tmp_path)
    (folder / "model.safetensors").unlink()
    lora = {f"llama.layers.{i}.self_attn.q_proj.lora_{part}": np.ones(2, "float32") for i in (0, 1) for part in "AB"}
    paddle.save({name: paddle.to_tensor(value) for name, value in lora.items()}, str(folder / "model_state.pdparams"))
    with pytest.raises(UserError, match=r"all tensors belong to LoRA.*model/ or adapter/"):
        build(folder, load=True)


def test_weights_without_values_are_refused_with_the_cause(tmp_path):
    folder = _saved_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros(0, "float32")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"no values.*up_proj.weight \[0\].*ZeRO stage 3"):
        build(folder, load=True)


def test_wrong_shapes_are_reported(tmp_path):
    folder = _saved_llama(tmp_path)
    tiny.write_llama(folder, intermediate_size=96)
    with pytest.raises(UserError, match=r"gate_proj.weight has shape \[172, 64\], config.json requires \[96, 64\]"):
        build(folder, load=True)


def test_unexpected_tensors_are_one_notice(tmp_path, capsys):
    folder = _saved_llama(tmp_path)
    tiny.write_llama(folder, num_hidden_layers=3)
    build(folder, load=True)
    reported = [line for line in capsys.readouterr().err.splitlines() if "not part of this model and ignored" in line]
    assert len(reported) == 1 and "9 tensors" in reported[0] and "model.layers.3" in reported[0]


@pytest.mark.parametrize("length", [4, 60, 5000, -8])
def test_a_truncated_file_is_reported(tmp_path, length):
    folder = _saved_llama(tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match="cut off|corrupt|no safetensors"):
        build(folder, load=True)


def test_weights_that_cannot_be_read_are_reported(tmp_path):
    WRITERS["llama"](tmp_path)
    (tmp_path / "model.safetensors").symlink_to("/proc/self/mem")  # reading its first byte is an input/output error
    with pytest.raises(UserError, match="cannot read .*model.safetensors: Input/output error"):
        build(tmp_path, load=True)


def test_a_corrupt_header_is_reported(tmp_path):
    folder = _saved_llama(tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:8] + b"x" + file.read_bytes()[9:])
    with pytest.raises(UserError, match="corrupt"):
        build(folder, load=True)


def test_a_broken_pdparams_is_reported(tmp_path):
    folder = tiny.write_llama(tmp_path)
    build(folder).save_pretrained(str(folder), safe_serialization=False)
    file = folder / "model_state.pdparams"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot read"):
        build(folder, load=True)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (None, "has no weights"),
        ("pytorch_model.bin", "--allow_pickle"),
        ("model_state.tp00.pdparams", "is a checkpoint split for one layout"),
    ],
)
def test_the_message_about_a_folder_without_weights_lists_its_files(tmp_path, file, message):
    folder = tiny.write_llama(tmp_path)
    if file:
        (folder / file).write_bytes(b"x")
    with pytest.raises(UserError, match=message):
        build(folder, load=True)


def test_an_index_that_names_a_missing_file_is_reported(tmp_path):
    folder = tiny.write_llama(tmp_path)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    with pytest.raises(UserError, match="model-00001-of-00001.safetensors"):
        build(folder, load=True)


def test_a_tied_head_that_differs_is_reported(tmp_path):
    folder = tiny.write_bloom(tmp_path)
    tensors = as_hugging_face(weights(build(folder), "bloom"), "bloom")
    tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].copy()
    save_file(tensors, folder / "model.safetensors")
    build(folder, load=True)
    tensors["lm_head.weight"][100, 3] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="lm_head.weight differs"):
        build(folder, load=True)


def _saved_llama(folder: Path) -> Path:
    """Return a folder with a tiny LLaMA and weights of Hugging Face."""
    tiny.write_llama(folder)
    save_file(as_hugging_face(weights(build(folder), "llama"), "llama"), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    folder = _saved_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(one for one in tensors if "q_proj" in one)
    tensors[name] = tensors[name].copy()
    tensors[name].flat[3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "np"})
    with pytest.raises(UserError, match=f"NaN or infinity in 1 weight: {name}"):
        build(folder, load=True)
