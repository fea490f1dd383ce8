"""LoRA adapters to and from PEFT's format: the same bits there and back, the same logits in PEFT's own library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.peft.method import Method
from tests.export.test_merged import TARGETS, base_folder, merged_in_network, network_of, trained_adapter
from tests.helpers.models.adapters import METHODS, attached, logits, trained_values
from tests.peft import peft_library
from tests.peft.disk import full_disk

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Family -> name of a layer with LoRA in PEFT's file
NAMES = {
    "llama": "model.layers.2.self_attn.q_proj",
    "chatglm_v2": "transformer.encoder.layers.2.self_attention.query_key_value",
    "bloom": "transformer.h.2.mlp.dense_4h_to_h",
    "opt": "model.decoder.layers.2.fc1",
    "qwen2": "model.layers.2.mlp.up_proj",
}
RETRAINED = {
    "llama": ("embed_tokens", "lm_head"),
    "chatglm_v2": ("output_layer",),
    "bloom": ("ln_f",),
    "opt": ("layers.1.linear2",),
    "qwen2": ("norm", "layers.0.input_layernorm"),
}


def made(folder: Path, family: str, **settings: Any) -> tuple[Path, Path]:
    """Return (base, adapter of it in this library's format)."""
    base = base_folder(folder / "base", family)
    settings = {"targets": TARGETS[family], "modules_to_save": RETRAINED[family]} | settings
    return base, trained_adapter(folder / "ours", base, Method("lora", rank=4, **settings))


def edit(folder: Path, **changes: Any) -> None:
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("family", NAMES)
def test_a_round_trip_keeps_every_bit(family, tmp_path):
    from paddle_llm.peft.save import load_adapter
    from tests.helpers.convert import from_peft, to_peft

    base, ours = made(tmp_path, family, alpha=12.0, rslora=True, dropout=0.05)
    to_peft(ours, tmp_path / "theirs")
    described, tensors = (
        json.loads((tmp_path / "theirs" / CONFIG).read_text()),
        load_file(tmp_path / "theirs" / TENSORS),
    )
    assert described["peft_type"] == "LORA" and described["task_type"] == "CAUSAL_LM" and described["bias"] == "none"
    assert (described["r"], described["lora_alpha"], described["lora_dropout"]) == (4, 12, 0.05)
    assert described["use_rslora"] and described["base_model_name_or_path"] == str(base)
    a, b = (tensors[f"base_model.model.{NAMES[family]}.lora_{which}.weight"] for which in "AB")
    assert a.shape[0] == b.shape[1] == 4
    from_peft(tmp_path / "theirs", tmp_path / "back")
    first, again = load_file(ours / TENSORS), load_file(tmp_path / "back" / TENSORS)
    assert first.keys() == again.keys()
    assert all(
        first[name].tobytes() == again[name].tobytes() and first[name].shape == again[name].shape for name in first
    )
    assert len(json.loads((tmp_path / "back" / CONFIG).read_text())["method"]["targets"]) == len(
        described["target_modules"]
    )
    assert not any(
        "|" in target for target in json.loads((tmp_path / "back" / CONFIG).read_text())["method"]["targets"]
    )
    one, other = (json.loads((folder / CONFIG).read_text()) for folder in (ours, tmp_path / "back"))
    for settings in (one["method"], other["method"]):
        del settings["targets"], settings["modules_to_save"]  # other patterns for the same layers
    assert one == other
    assert (
        _loaded(base, ours, family)
        == _loaded(base, tmp_path / "back", family)
        == _loaded(base, tmp_path / "theirs", family)
    )
    assert load_adapter(network_of(base, "float32"), tmp_path / "theirs", Layout()) is not None


def _loaded(base: Path, adapter: Path, family: str) -> tuple[dict[str, bytes], bytes]:
    """Return (trained tensors, logits) of the network with an adapter."""
    from paddle_llm.peft.save import load_adapter

    model = load_adapter(network_of(base, "float32"), adapter, Layout())
    model.eval()
    values = trained_values(model)
    return {name: values[name].tobytes() for name in sorted(values)}, logits(model, family).tobytes()


def test_training_continues_and_export_merges_from_either_format(tmp_path):
    from paddle_llm.export.source.open import open_source
    from paddle_llm.peft.adapter_files import read_method
    from paddle_llm.peft.save import continue_from
    from tests.helpers.convert import to_peft

    base, ours = made(tmp_path, "llama")
    to_peft(ours, tmp_path / "theirs")
    method = read_method(tmp_path / "theirs")  # before a network is built
    model = attached(network_of(base, "float32"), method)
    continue_from(model, tmp_path / "theirs")
    first = load_file(ours / TENSORS)
    values = trained_values(model)
    assert values.keys() == first.keys() and all(np.array_equal(values[name], first[name]) for name in first)
    wanted = merged_in_network(base, ours, "float32")
    source = open_source(tmp_path / "theirs")  # it names the base
    assert source.folder == base and all(np.array_equal(source.read(name), wanted[name]) for name in wanted)


def test_layers_missing_in_some_blocks_are_named_one_by_one(tmp_path):
    from tests.helpers.convert import from_peft, to_peft

    base, ours = made(tmp_path, "llama", targets=(r".*\.[13]\.self_attn\.q_proj",), modules_to_save=())
    to_peft(ours, tmp_path / "theirs")
    described = json.loads((tmp_path / "theirs" / CONFIG).read_text())
    assert described["target_modules"] == ["model.layers.1.self_attn.q_proj", "model.layers.3.self_attn.q_proj"]
    assert described["modules_to_save"] is None
    from_peft(tmp_path / "theirs", tmp_path / "back")
    assert _loaded(base, ours, "llama") == _loaded(base, tmp_path / "back", "llama")


@pytest.mark.parametrize("name", ["adalora", "prefix", "adapter", "prompt"])
def test_what_peft_cannot_express_is_refused(name, tmp_path):
    from tests.helpers.convert import to_peft

    base = base_folder(tmp_path / "base", "llama")
    adapter = trained_adapter(tmp_path / "ours", base, METHODS[name])
    with pytest.raises(UserError, match=f"trained by {METHODS[name].name}, which cannot be converted: PEFT"):
        to_peft(adapter, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_fused_matrices_are_refused(tmp_path):
    from tests.helpers.convert import to_peft

    base = base_folder(tmp_path / "base", "llama")
    adapter = trained_adapter(tmp_path / "ours", base, METHODS["lora"], fuse_attention_qkv=True)
    with pytest.raises(UserError, match="qkv_proj.*keeps separate.*fuse_attention_qkv"):
        to_peft(adapter, tmp_path / "theirs")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"use_dora": True}, "has no lora_magnitude"),
        ({"bias": "lora"}, "bias 'lora'"),
        ({"rank_pattern": {"q_proj": 8}}, "q_proj has shape .* gives rank 8"),
        ({"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern"),
        ({"rank_pattern": {"(q_proj": 4}}, "invalid regular expression"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*path_initial_model_for_weight_conversion"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"layer_replication": [[0, 4], [2, 4]]}, "layer_replication.*several times"),
        ({"r": None}, "r None"),
        ({"target_modules": ["q_proj"]}, "differ about .*down_proj"),
        ({"target_modules": ["q_proj", "down_proj", "v_proj"]}, "differ about .*v_proj"),
        ({"layers_to_transform": [0]}, "differ about"),
        ({"modules_to_save": ["lm_head"]}, "'lm_head'.*has no lm_head.weight"),
    ],
)
def test_unsupported_settings_of_peft_are_refused(changes, message, tmp_path):
    from paddle_llm.peft.save import load_adapter

    base, theirs = _theirs(tmp_path)
    edit(theirs, **changes)
    with pytest.raises(UserError, match=message):
        load_adapter(network_of(base, "float32"), theirs, Layout())


def _theirs(folder: Path) -> tuple[Path, Path]:
    from tests.helpers.convert import to_peft

    base, ours = made(folder, "llama", modules_to_save=())
    to_peft(ours, folder / "theirs")
    return base, folder / "theirs"


def test_files_that_do_not_fit_are_refused(tmp_path):
    from paddle_llm.peft.save import load_adapter
    from tests.helpers.convert import from_peft

    base, theirs = _theirs(tmp_path)
    tensors = load_file(theirs / TENSORS)
    network = network_of(base, "float32")

    def refused(changed: dict[str, np.ndarray], message: str) -> None:
        save_file(changed, theirs / TENSORS)
        with pytest.raises(UserError, match=message):
            load_adapter(network, theirs, Layout())

    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    refused(
        {name: value for name, value in tensors.items() if name != first}, "layers.0.self_attn.q_proj has no lora_B"
    )
    refused(
        tensors | {"base_model.model.model.layers.0.strange.weight": tensors[first]}, "belong to no weight.*strange"
    )
    refused(
        tensors | {"base_model.model.model.embed_tokens.lora_embedding_A": tensors[first]}, "embed_tokens has no lora_B"
    )
    refused(tensors | {"model.layers.0.self_attn.q_proj.lora_B.weight": tensors[first]}, "does not begin with")
    refused(tensors | {first.replace("_B", "_C"): tensors[first]}, "unsupported tensor of LoRA: .*lora_C.weight")
    refused(tensors | {first: np.zeros(0, "float32")}, r"no values.*lora_B.weight \[0\].*ZeRO stage 3")
    other = base_folder(tmp_path / "other", "llama", hidden_size=32, intermediate_size=80)
    save_file(tensors, theirs / TENSORS)
    with pytest.raises(UserError, match=r"has shape \[\d+, 4\], but .*other needs \[\d+, 4\]"):
        from_peft(theirs, tmp_path / "back", base=other)
    with pytest.raises(UserError, match=r"has shape \[\d+, 4\], but this network needs \[\d+, 4\]"):
        load_adapter(network_of(other, "float32"), theirs, Layout())
    (theirs / TENSORS).rename(theirs / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin.*--allow_pickle.*safe_serialization"):
        load_adapter(network, theirs, Layout())


def test_a_trained_tied_embedding_includes_its_head(tmp_path):
    from tests.helpers.convert import from_peft, to_peft

    base = base_folder(tmp_path / "base", "llama", tie_word_embeddings=True)
    method = Method("lora", rank=4, modules_to_save=("embed_tokens",))
    ours, theirs = trained_adapter(tmp_path / "ours", base, method), tmp_path / "theirs"
    to_peft(ours, theirs)
    tensors = load_file(theirs / TENSORS)
    head, embedding = "base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"
    assert np.array_equal(tensors[head], tensors[embedding])
    assert json.loads((theirs / CONFIG).read_text())["modules_to_save"] == ["lm_head", "model.embed_tokens"]
    from_peft(theirs, tmp_path / "back")
    assert _loaded(base, ours, "llama") == _loaded(base, tmp_path / "back", "llama")
    save_file(tensors | {head: tensors[head] + 1}, theirs / TENSORS)
    with pytest.raises(UserError, match="trained them separately"):
        from_peft(theirs, tmp_path / "again")
    base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="--base"):
        to_peft(ours, tmp_path / "unknown")


def test_bfloat16_keeps_its_bits(tmp_path):
    from tests.helpers.convert import from_peft, to_peft

    base = base_folder(tmp_path / "base", "llama", "bfloat16")
    ours = trained_adapter(tmp_path / "ours", base, METHODS["lora"], "bfloat16")
    to_peft(ours, tmp_path / "theirs")
    from_peft(tmp_path / "theirs", tmp_path / "back")
    assert (ours / TENSORS).read_bytes() == (tmp_path / "back" / TENSORS).read_bytes()


# ---- the command ----------------------------------------------------------------------------------------------------


def command(*words: Any) -> str:
    from paddle_llm.cli.convert import convert

    return CliRunner().invoke(convert, [*map(str, words)], catch_exceptions=False).stdout


def test_the_command(tmp_path):
    base, ours = made(tmp_path, "llama")
    ours.rename(tmp_path / "adapter")
    out = tmp_path / "theirs"
    assert command(tmp_path, out, "--to", "peft").endswith(f"base model: {base}\n")  # the output folder of a run
    first = (out / TENSORS).read_bytes()
    with pytest.raises(UserError, match="not empty.*--overwrite"):
        command(tmp_path / "adapter", out, "--to", "peft")
    command(tmp_path / "adapter", out, "--to", "peft", "--overwrite", "--base", base)
    assert (out / TENSORS).read_bytes() == first and sorted(file.name for file in out.iterdir()) == [CONFIG, TENSORS]
    with pytest.raises(UserError, match="is already in PEFT's format"):
        command(out, tmp_path / "more", "--to", "peft")
    with pytest.raises(UserError, match="is not an adapter.*not replaced"):
        command(out, base, "--to", "paddle-llm", "--overwrite")
    with pytest.raises(UserError, match="is not an adapter: it has no adapter_config.json"):
        command(base, tmp_path / "more", "--to", "peft")
    with pytest.raises(UserError, match="is or contains"):
        command(out, tmp_path, "--to", "paddle-llm", "--overwrite")
    base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="--base"):
        command(out, tmp_path / "back", "--to", "paddle-llm")
    command(out, tmp_path / "back", "--to", "paddle-llm", "--base", tmp_path / "moved")
    assert (tmp_path / "back" / TENSORS).exists() and not list(tmp_path.glob("*.saving"))


def test_an_interrupted_conversion_leaves_the_old_output(tmp_path, monkeypatch, capsys):
    from paddle_llm.cli.convert import convert
    from paddle_llm.peft import adapter_files

    _, ours = made(tmp_path, "llama")
    out = tmp_path / "theirs"
    command(ours, out, "--to", "peft")
    before = (out / TENSORS).read_bytes()

    def half_of_it(file: Path, *_: Any, **__: Any) -> None:
        file.write_bytes(before[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(adapter_files, "write_safetensors", half_of_it)
    (tmp_path / "new.saving").mkdir()
    (tmp_path / "new.saving" / "thesis.txt").touch()
    for place in (out, tmp_path / "new"):
        result = CliRunner().invoke(convert, [str(ours), str(place), "--to", "peft", "--overwrite"])
        assert result.exit_code == 130 and f"interrupted; {place} was not written" in result.stderr
    assert (out / TENSORS).read_bytes() == before and (tmp_path / "new.saving" / "thesis.txt").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"base", "ours", "theirs", "new.saving"}


def test_a_wrong_base_is_refused(tmp_path, capsys):
    from tests.helpers.convert import from_peft, to_peft

    base, ours = made(tmp_path, "llama", modules_to_save=())
    other = base_folder(tmp_path / "other", "llama", num_hidden_layers=1)
    out = tmp_path / "theirs"
    with pytest.raises(
        UserError, match=r"other does not fit .*: layers is 1, not \d+\. Give the base that it was trained on"
    ):
        to_peft(ours, out, base=other)
    with pytest.raises(UserError, match="nowhere does not exist"):
        to_peft(ours, out, base=tmp_path / "nowhere")
    assert not out.exists()
    (tmp_path / "run").mkdir()
    base.rename(tmp_path / "run" / "model")
    assert to_peft(ours, out, base=tmp_path / "run") == str(tmp_path / "run" / "model")
    assert to_peft(ours, tmp_path / "more", base="someone/llama") == "someone/llama"
    described = json.loads((tmp_path / "more" / "adapter_config.json").read_text())
    described["base_model_name_or_path"] = "meta-llama/Llama-2-7b"  # a built-in name, with a shape in configs/models
    (tmp_path / "more" / "adapter_config.json").write_text(json.dumps(described))
    with pytest.raises(
        UserError, match=r"names, meta-llama/Llama-2-7b \(.*llama-2-7b\)\. Give another one with --base"
    ):
        from_peft(tmp_path / "more", out)
    assert "not compared" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    _, ours = made(tmp_path, "llama")
    before = set(tmp_path.iterdir())
    with full_disk(), pytest.raises(UserError, match="theirs was not written.*too large"):
        command(ours, tmp_path / "theirs", "--to", "peft")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        command(ours, ours / CONFIG / "theirs", "--to", "peft")
    assert set(tmp_path.iterdir()) == before


# ---- Hugging Face's own library -------------------------------------------------------------------------------------


def ours_over(base: Path, adapter: Path) -> np.ndarray:
    from paddle_llm.peft.save import load_adapter

    model = load_adapter(network_of(base, "float32"), adapter, Layout())
    model.eval()
    return logits(model, inputs=_inputs())


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 2}, {"modules_to_save": ("embed_tokens", "lm_head")}),
    "tied": (
        "llama",
        {"tie_word_embeddings": True},
        {"modules_to_save": ("embed_tokens",), "rslora": True, "alpha": 5.0},
    ),
    "qwen2": ("qwen2", {}, {"modules_to_save": ("norm", "layers.0.input_layernorm")}),
    "bloom": ("bloom", {}, {"modules_to_save": ("ln_f", "word_embeddings")}),
    "opt": ("opt", {}, {"targets": ("linear1", "v_proj")}),
    "a layer trained beside its LoRA": ("llama", {}, {"modules_to_save": ("layers.0.self_attn.q_proj",)}),
    "some layers": ("llama", {}, {"targets": (r".*\.[13]\..*_proj",)}),
}


@pytest.mark.hf
@pytest.mark.parametrize("case", CASES)
def test_peft_computes_the_same_with_a_converted_adapter(case, tmp_path):
    from tests.helpers.convert import to_peft

    family, shape, settings = CASES[case]
    base = base_folder(tmp_path / "base", family, **shape)
    ours = trained_adapter(tmp_path / "ours", base, Method("lora", rank=4, **settings))
    to_peft(ours, tmp_path / "theirs")
    theirs = peft_library.logits(peft_library.loaded(base, tmp_path / "theirs"))
    here = ours_over(base, ours)
    plain = logits(network_of(base, "float32"), inputs=_inputs())
    assert np.abs(here - plain).max() > 0.05 * np.abs(plain).max()  # the adapter has a large effect
    np.testing.assert_allclose(theirs, here, rtol=0, atol=1e-5 * np.abs(here).max())


def _inputs() -> dict[str, Any]:
    import paddle

    return {"input_ids": paddle.to_tensor(peft_library.TOKENS)}


def test_a_conversion_does_not_use_gpus():
    code = (
        "from paddle_llm.parallel.process.start import start_process; start_process('cpu'); "
        "import os, paddle; print([os.environ['CUDA_VISIBLE_DEVICES'], paddle.get_device()])"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "['', 'cpu']\n"
