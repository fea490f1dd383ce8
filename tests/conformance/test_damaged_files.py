"""Damaged files for which the fuzzer once found a traceback: each is one error message."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from paddle_llm.core.errors import UserError

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 64,
}


def architectures(folder: Path) -> None:
    from paddle_llm.config.local_files.model_folder import read_model_facts

    (folder / "config.json").write_text(json.dumps({**LLAMA, "architectures": 5}))
    read_model_facts(folder)


def long_model_name(folder: Path) -> None:
    from paddle_llm.config.local_files.model_folder import find_model_folder

    find_model_folder("x" * 2000)


def long_name_in_index(folder: Path) -> None:
    from paddle_llm.models.weights.files import WeightFiles

    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors" * 50}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    WeightFiles(folder)


def nested_index(folder: Path) -> None:
    from paddle_llm.models.weights.files import WeightFiles

    (folder / "model.safetensors.index.json").write_bytes(b"[" * 100_000)
    WeightFiles(folder)


def pickle_of_text(folder: Path) -> None:
    from paddle_llm.models.weights.files import WeightFiles

    (folder / "model_state.pdparams").write_bytes(pickle.dumps("weights", protocol=2))
    WeightFiles(folder)


def base_of_an_adapter(folder: Path) -> None:
    from paddle_llm.checkpoint.locate import locate_base

    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": ["a", "b"]}))
    locate_base(folder)


def continue_outside_of_a_loop(folder: Path) -> None:
    from paddle_llm.data.chat.renderer import Renderer

    Renderer("{% continue %}{{ messages }}", "template.jinja")


@pytest.mark.parametrize(
    "read",
    [
        architectures,
        long_model_name,
        long_name_in_index,
        nested_index,
        pickle_of_text,
        base_of_an_adapter,
        continue_outside_of_a_loop,
    ],
    ids=lambda read: read.__name__,
)
def test_damage_is_one_error(read: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        read(tmp_path)
    assert len(str(refused.value)) < 1000


def test_impossible_file_names_and_methods_are_an_error(tmp_path):
    from paddle_llm.checkpoint.locate import locate_base
    from paddle_llm.models.weights.paddle_pickles import scan_paddle_pickle
    from paddle_llm.peft.method import Method

    assert locate_base(tmp_path, "x" * 300).folder is None
    with pytest.raises(UserError, match="unknown method"):
        Method.from_dict({"name": {"lora": 1}})
    cut = tmp_path / "model_state.pdparams"
    cut.write_bytes(b"\x80\x04\x95\x00")
    with pytest.raises(UserError, match="cut off"):
        scan_paddle_pickle(cut)
