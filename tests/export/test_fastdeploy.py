"""Target fastdeploy: the contract of its folder, and the unsupported families."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.export.options import Options
from paddle_llm.models.weights.files import write_safetensors
from tests.export.folders import same_bits, stored_in, write_native
from tests.helpers.models.networks import as_hugging_face


def exported(folder: Path, **options) -> Path:
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.targets.fastdeploy import write_fastdeploy

    out = folder.with_name("out")
    out.mkdir()
    write_fastdeploy(open_source(folder), out, Options(**options))
    return out


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_layout_is_that_of_torch_and_one_key_states_it(tmp_path, family):
    weights = write_native(tmp_path / "model", family, "bfloat16")
    out = exported(tmp_path / "model", max_shard_size=100_000)
    config = json.loads((out / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16" and "dtype" not in config and config["architectures"]
    stored = stored_in(out)
    for name, value in as_hugging_face(weights, family).items():
        assert same_bits(stored[name][1], value), name
    assert all(name.startswith(("model.", "lm_head.")) for name in stored)
    assert not list(out.glob("*.pdparams")) and (out / "model.safetensors.index.json").is_file()


def test_weights_of_two_types_are_converted_to_one(tmp_path, capsys):
    weights = write_native(tmp_path / "model", "llama", "bfloat16")
    weights["llama.norm.weight"] = np.full(64, 1 + 2**-9, np.float32)
    write_safetensors(tmp_path / "model" / "model.safetensors", weights)
    stored = stored_in(exported(tmp_path / "model"))
    assert "stored as float32 are converted to bfloat16: FastDeploy reads one type" in capsys.readouterr().err
    assert {dtype for dtype, _ in stored.values()} == {"BF16"}
    assert (stored["model.norm.weight"][1] == 0x3F80).all()


@pytest.mark.parametrize("family", ["chatglm", "chatglm_v2", "bloom", "opt", "glm"])
def test_unsupported_families_are_refused_with_alternatives(tmp_path, family):
    write_native(tmp_path / "model", family)
    with pytest.raises(
        UserError, match=r"does not support .*FastDeploy 2.x supports only .*--target hf .* --target static"
    ):
        exported(tmp_path / "model")
    assert not any((tmp_path / "out").iterdir())


def test_the_folder_is_generated_with_and_exported_again(llama, tmp_path):
    """Its tokenizer is a tokenizer.json alone."""
    from paddle_llm.export import export

    served = export(llama, "fastdeploy", tmp_path / "served", verify=False).folder
    wanted = generated(llama)
    assert generated(served) == wanted
    for target in ("hf", "fastdeploy", "static"):
        out = export(served, target, tmp_path / target, verify=False).folder
        assert generated(out, static=target == "static") == wanted


def generated(folder: Path, static: bool = False) -> list[list[int]]:
    """Return the ids of prompts and of the answers of a folder's model, as `paddle-llm generate` reads and decodes them."""
    from paddle_llm.generation.decoding.decode import decode
    from paddle_llm.generation.eval_mode import generating
    from paddle_llm.generation.network import load_network, open_static, start_process
    from paddle_llm.generation.options import DecodeOptions
    from paddle_llm.generation.prompts import encode_text

    loaded = open_static(folder) if static else load_network(folder, *start_process("cpu"))
    texts = ["The old house", "人工智能的发展", "def add(a, b):\n    return a +", "😀 ok"]
    prompts = [encode_text(loaded.codec, text) for text in texts]
    with generating(loaded.model):
        answers = decode(loaded.model, prompts, [8] * len(prompts), DecodeOptions(loaded.family, loaded.stop_ids))
    return [*(list(prompt.ids) for prompt in prompts), *answers]
