"""transformers loads `model/` in the format hf unchanged, from every layout; its files contain no path of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.models.networks import WRITERS, build
from tests.helpers.pretrain_jobs import config

pytestmark = pytest.mark.hf
IDS = np.arange(3, 19).reshape(2, 8)


def _save(folder: Path, layout: Layout, fused: bool) -> None:
    """Random weights depend only on the seed."""
    from paddle_llm.checkpoint.merged_model import save_merged_model
    from paddle_llm.models.build import build_model
    from paddle_llm.parallel.process.start import start_process
    from paddle_llm.training.arguments import training_arguments

    start_process("cpu", layout.world_size)
    run = config(folder, fuse_attention_qkv=fused or None, fuse_attention_ffn=fused or None)
    training_arguments(run, layout)
    model = build_model(run, layout, dtype="float32")
    settings = {"eos_token_id": [2, 7], "pad_token_id": 0}
    save_merged_model(model, layout, folder / "model", generation=settings, model_format="hf")


def _compare(folder: Path, expected: np.ndarray) -> None:
    """Return the logits of transformers and of this project for the same folder."""
    import paddle
    import torch
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(IDS)).logits.numpy()
    ours = build(folder, load=True)
    ours.eval()
    again = ours(paddle.to_tensor(IDS))
    again = (again[0] if isinstance(again, tuple) else again).numpy()
    np.testing.assert_allclose(theirs, expected, atol=1e-4)
    np.testing.assert_allclose(again, expected, atol=1e-5)


def _logits(folder: Path, **fields) -> np.ndarray:
    import paddle

    model = build(folder, seed=42, **fields)
    model.eval()
    found = model(paddle.to_tensor(IDS))
    return (found[0] if isinstance(found, tuple) else found).numpy()


LAYOUTS = [
    (Layout(), True, False),
    (Layout(tensor=2, pipeline=2), True, False),
    (Layout(pipeline=2), False, True),
]


@pytest.mark.parametrize(("layout", "fused", "tied"), LAYOUTS, ids=str)
def test_transformers_computes_the_same_from_every_layout(layout, fused, tied, tmp_path):
    WRITERS["llama"](tmp_path / "llama", vocab_size=127, num_key_value_heads=2, tie_word_embeddings=tied)
    run_ranks(_save, layout.world_size, tmp_path, layout, fused)
    _compare(tmp_path / "model", _logits(tmp_path / "llama", fuse_attention_qkv=fused, fuse_attention_ffn=fused))
    index = tmp_path / "model/model.safetensors.index.json"
    assert index.is_file() == (layout.pipeline > 1)
    assert json.loads((tmp_path / "model/generation_config.json").read_text())["eos_token_id"] == [2, 7]


@pytest.mark.parametrize("family", ["qwen2", "bloom", "opt"])
def test_other_families_are_saved_for_transformers(family, tmp_path):
    from paddle_llm.checkpoint.merged_model import save_merged_model

    WRITERS[family](tmp_path / "config")
    model = build(tmp_path / "config", seed=42)
    save_merged_model(model, Layout(), tmp_path / "model", model_format="hf")
    _compare(tmp_path / "model", _logits(tmp_path / "config"))


SHAPES = {
    "llama": ("LlamaConfig", {"intermediate_size": 128, "num_key_value_heads": 2}),
    "qwen2": (
        "Qwen2Config",
        {"intermediate_size": 128, "num_key_value_heads": 2, "sliding_window": None, "use_sliding_window": False},
    ),
    "bloom": ("BloomConfig", {}),
    "opt": ("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
}
IDS_IN_CONFIG = [
    {"bos_token_id": None, "eos_token_id": 7, "pad_token_id": None},
    {"bos_token_id": 5, "eos_token_id": [7, 8], "pad_token_id": 9},
    {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0},
]
# Keys about the file, or without effect on the network.
_NOT_COMPARED = {"_name_or_path", "transformers_version", "torch_dtype", "use_cache", "max_window_layers"}


@pytest.mark.parametrize("ids", IDS_IN_CONFIG, ids=str)
@pytest.mark.parametrize("family", SHAPES)
def test_transformers_reads_the_same_configuration_from_an_export(family, ids, tmp_path):
    """Null keys are kept: without the key, transformers uses the default of its class."""
    import transformers

    from paddle_llm.export.options import Options
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.targets.hugging_face import write_config
    from paddle_llm.export.verification.files import configuration_differences

    name, changes = SHAPES[family]
    sizes = {
        "vocab_size": 128,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    described = getattr(transformers, name)(**sizes | changes | ids)
    transformers.AutoModelForCausalLM.from_config(described).save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    source = open_source(tmp_path / "theirs")
    write_config(source, tmp_path / "ours", Options())
    theirs, ours = (
        transformers.AutoConfig.from_pretrained(tmp_path / folder).to_dict() for folder in ("theirs", "ours")
    )
    assert {key: ours[key] for key in theirs if key not in _NOT_COMPARED and ours[key] != theirs[key]} == {}
    assert configuration_differences(source, tmp_path / "ours") == []


def test_a_job_saves_a_folder_for_transformers_and_continues_from_it(tmp_path):
    """Two tensor-parallel ranks; the tokenizer of PaddleNLP is converted; the next job starts from the folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from paddle_llm.data.tokenizers.text_codec import open_codec
    from tests.helpers.finetune_jobs import finetune, make_instructions

    folder = make_instructions(tmp_path / "data")
    (folder / "llama/generation_config.json").write_text('{"eos_token_id": [2, 270], "do_sample": true, "top_p": 0.9}')
    common = {"max_steps": 1, "save_strategy": "no", "do_eval": None, "evaluation_strategy": None, "eval_steps": None}
    finetune(folder, tmp_path / "one", ranks=2, tensor_parallel_degree=2, model_format="hf", **common)
    saved = tmp_path / "one/model"
    _, found = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not any(found.values()), found
    tokenizer, codec = AutoTokenizer.from_pretrained(saved), open_codec(str(folder / "llama"))
    text = "Ada has 3 apples and gets 14 more.\n  How many?"
    assert tokenizer(text, add_special_tokens=False).input_ids == codec.encode(text)
    settings = json.loads((saved / "generation_config.json").read_text())
    assert set(settings["eos_token_id"]) >= {2, 270} and settings["top_p"] == 0.9
    finetune(folder, tmp_path / "two", model_name_or_path=saved, continue_training=True, **common)
    for output in ("one", "two"):
        for file in sorted((tmp_path / output / "model").glob("*.json")):
            assert str(tmp_path) not in file.read_text(), file
