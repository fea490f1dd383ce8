"""The weight files of a folder are chosen in the order of transformers and PaddleNLP; others are refused or reported."""

from __future__ import annotations

import json

import pytest

from paddle_llm.config.local_files.weights import choose_weights, has_weights
from paddle_llm.core.errors import UserError

ST, ST_INDEX = "model.safetensors", "model.safetensors.index.json"
PD, PD_INDEX = "model_state.pdparams", "model_state.pdparams.index.json"
PT, PT_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def put(folder, *names):
    """Create empty files; an index names one shard for the tensor "a"."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".index.json"):
            stem, suffix = name.removesuffix(".index.json").rsplit(".", 1)
            shard = f"{stem}-00001-of-00001.{suffix}"
            file.write_text(json.dumps({"weight_map": {"a": shard}}))
            (folder / shard).write_bytes(b"")
        else:
            file.write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ((ST, ST_INDEX, PD, PD_INDEX, PT, PT_INDEX), ST),
        ((ST_INDEX, PD, PD_INDEX, PT, PT_INDEX), "model-00001-of-00001.safetensors"),
        ((PD, PD_INDEX, PT, PT_INDEX), "model_state-00001-of-00001.pdparams"),  # PaddleNLP uses its index first
        ((PD, PT, PT_INDEX), PD),
        ((PT, PT_INDEX), PT),
        ((PT_INDEX,), "pytorch_model-00001-of-00001.bin"),
    ],
)
def test_weight_files_are_chosen_in_order(tmp_path, names, read):
    choice = choose_weights(put(tmp_path, *names), allow_pickle=True)
    assert [file.name for file in choice.files] == [read]
    assert has_weights(tmp_path) != read.endswith(".bin")
    listed = {one.name for one in tmp_path.iterdir()} - {read, choice.index_file.name if choice.index_file else ""}
    assert set(choice.unread) == listed


def test_transformers_weights_names_the_file(tmp_path):
    put(tmp_path, ST, "other.safetensors")
    (tmp_path / "config.json").write_text('{"transformers_weights": "other.safetensors"}')
    assert choose_weights(tmp_path).files == (tmp_path / "other.safetensors",)
    for value in ('"other.bin"', "3", '"../other.safetensors"', '"absent.safetensors"'):
        (tmp_path / "config.json").write_text(f'{{"transformers_weights": {value}}}')
        with pytest.raises(UserError):
            choose_weights(tmp_path)


def test_other_weights_are_listed_and_training_state_is_not(tmp_path):
    others = ["adapter_model.safetensors", "consolidated.00.pth", "model.fp16.safetensors", "q4.gguf"]
    put(
        tmp_path,
        ST,
        *others,
        "optimizer.pt",
        "training_args.bin",
        "scheduler.pt",
        "rng_state.pth",
        "master_weights.safetensors",
    )
    put(
        tmp_path,
        "original/consolidated.00.pth",
        "checkpoint-5/model.safetensors",
        "checkpoint-5/config.json",
        "onnx/readme.md",
    )
    assert sorted(choose_weights(tmp_path).unread) == sorted([*others, "original/"])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"a": "absent.safetensors"}}', "names files that do not exist: absent.safetensors"),
        ('{"weight_map": {"a": "/etc/x.safetensors"}}', "outside"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "outside"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "duplicate key a with different values"),
        ('{"weight_map": {}}', "is empty"),
        ('{"weight_map": {"a": 3}}', "file names"),
        ('{"weight_map": ["a"]}', "file names"),
        ("{}", "no weight_map"),
        ("[]", "not an index"),
        ('{"weight_map"', "not an index"),
    ],
)
def test_a_broken_index_is_one_message(tmp_path, index, message):
    (tmp_path / ST_INDEX).write_text(index)
    with pytest.raises(UserError, match=message):
        choose_weights(tmp_path)


def test_links_are_followed_and_broken_ones_reported(tmp_path):
    put(tmp_path, "blobs/abc")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / ST).symlink_to(tmp_path / "blobs/abc")
    assert choose_weights(tmp_path / "snapshot").files == (tmp_path / "snapshot" / ST,)
    (tmp_path / "blobs/abc").unlink()
    put(tmp_path / "snapshot", PD)
    with pytest.raises(UserError, match="broken link"):
        choose_weights(tmp_path / "snapshot")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("model.fp16.safetensors",), "has no weights.*model.fp16.safetensors"),
        (("adapter_model.safetensors",), "has no weights.*adapter_model.safetensors"),
        ((PT,), "--allow_pickle"),
        (("pytorch_model-00001-of-00002.bin",), "has no readable weights"),
        ((), "has no weights"),
    ],
)
def test_a_folder_without_weights_names_its_files(tmp_path, names, message):
    put(tmp_path, *names)
    assert not has_weights(tmp_path)
    with pytest.raises(UserError, match=message):
        choose_weights(tmp_path)
