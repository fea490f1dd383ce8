"""Target hf: names, layouts, dtypes, shards and config.json, compared with transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors import safe_open

from paddle_llm.core.errors import UserError
from paddle_llm.export.options import Options
from paddle_llm.families import FAMILIES
from tests.export.folders import random_weights, same_bits, stored_in, write_config, write_native
from tests.helpers.models.networks import as_hugging_face, build

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def exported(folder: Path, **options) -> Path:
    """Export a folder to a folder beside it, and return that."""
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.targets.hugging_face import write_hf

    out = folder.with_name(folder.name + "-hf")
    out.mkdir()
    write_hf(open_source(folder), out, Options(**options))
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_there_under_its_name_bit_by_bit(tmp_path, family, dtype):
    weights = write_native(tmp_path / "model", family, dtype)
    stored = stored_in(exported(tmp_path / "model"))
    expected = as_hugging_face(weights, family)
    assert stored.keys() == expected.keys()
    for name, value in expected.items():
        assert stored[name][0] == CODES[dtype]
        assert same_bits(stored[name][1], value), name
    assert not any(name.endswith("lm_head.weight") for name in stored) or family in ("llama", "qwen2", "mistral")


# ---- shards ---------------------------------------------------------------------------------------------------------


def test_shards_are_named_filled_and_indexed(tmp_path):
    weights = write_native(tmp_path / "model", "llama")
    limit = 100_000
    out = exported(tmp_path / "model", max_shard_size=limit)
    files = sorted(out.glob("*.safetensors"))
    count = len(files)
    assert count > 3 and [f.name for f in files] == [
        f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)
    ]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in weights.values())
    found, filled = {}, []
    for file in files:
        with safe_open(file, framework="np") as shard:  # refuses gaps and overlaps
            assert shard.metadata() == {"format": "pt"}
            found |= dict.fromkeys(shard.keys(), file.name)
            filled.append(sum(shard.get_tensor(name).nbytes for name in shard.keys()))  # noqa: SIM118
    assert index["weight_map"] == found
    assert max(filled) <= limit and min(a + b for a, b in zip(filled, filled[1:], strict=False)) > limit


def test_a_tensor_larger_than_a_shard_has_one_to_itself(tmp_path):
    weights = write_native(tmp_path / "model", "llama")
    out = exported(tmp_path / "model", max_shard_size=1)
    assert len(list(out.glob("*.safetensors"))) == len(weights) == len(stored_in(out))


def test_one_file_has_no_index(tmp_path):
    write_native(tmp_path / "model", "llama")
    assert [f.name for f in exported(tmp_path / "model").glob("model*")] == ["model.safetensors"]


@pytest.mark.parametrize("shape", [(1, 1), (127, 129), (300, 1000), (4096, 2100)])
def test_blocks_are_the_rows_of_the_transpose(shape):
    from paddle_llm.export.targets.shard_writer import PlannedTensor, blocks

    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    parts = list(blocks(PlannedTensor("w", shape[::-1], "float32", "float32", lambda: values.T)))
    assert all(part.flags.c_contiguous for part in parts)
    assert len(parts) == -(-values.nbytes // (32 << 20))
    assert same_bits(np.concatenate(parts), np.ascontiguousarray(values.T))


def test_wide_tensors_begin_at_multiples_of_their_size(tmp_path):
    """After an odd number of 16-bit values, a 32-bit value would be misaligned."""
    from paddle_llm.export.targets.shard_writer import PlannedTensor, write_shards

    half, single = np.arange(3, dtype=np.uint16), np.arange(5, dtype=np.float32)
    tensors = [
        PlannedTensor("half", (3,), "bfloat16", "bfloat16", lambda: half),
        PlannedTensor("single", (5,), "float32", "float32", lambda: single),
    ]
    (file,) = write_shards(tmp_path, tensors, 10**9)
    length = int.from_bytes(file.read_bytes()[:8], "little")
    begins = json.loads(file.read_bytes()[8 : 8 + length])["single"]["data_offsets"][0]
    assert (8 + length + begins) % 4 == 0
    stored = stored_in(tmp_path)
    assert same_bits(stored["half"][1], half) and same_bits(stored["single"][1], single)


# ---- dtypes ---------------------------------------------------------------------------------------------------------

EDGES = [0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.14159, 1e-40, 6.1e-5, 65504.0, 3e38, -1e30]


@pytest.mark.parametrize("wanted", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_dtypes_are_rounded_as_paddle_rounds(stored, wanted):
    from paddle_llm.export.source.dtypes import converted

    random = np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.random.default_rng(1).integers(-6, 4, 1000)
    values = np.concatenate([random, EDGES]).astype(np.float32)
    if "float16" in (stored, wanted):
        values = values[np.abs(values) < 65504]
    held = paddle.to_tensor(values).astype(stored)
    expected = held.astype("float32").astype(wanted).numpy()
    assert same_bits(converted(held.numpy(), stored, wanted), expected)


def test_nan_and_infinity_are_preserved():
    from paddle_llm.export.source.dtypes import converted

    bits = np.array([0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0x7F800000, 0xFF800000], np.uint32)
    back = converted(converted(bits.view(np.float32), "float32", "bfloat16"), "bfloat16", "float32")
    assert np.isnan(back).tolist() == [True, True, True, False, False] and np.isinf(back).sum() == 2
    half = converted(bits.view(np.float32), "float32", "float16")
    assert np.isnan(half).tolist() == [True, True, True, False, False]


def test_float16_that_would_become_infinite_is_refused(tmp_path):
    from paddle_llm.models.weights.files import write_safetensors

    weights = write_native(tmp_path / "model", "llama")
    weights["llama.norm.weight"][5] = 1e5
    write_safetensors(tmp_path / "model" / "model.safetensors", weights)
    with pytest.raises(UserError, match=r"model.norm.weight has values beyond 65504, the maximum of float16"):
        exported(tmp_path / "model", dtype="float16")


def test_weights_are_converted_to_another_dtype(tmp_path):
    weights = write_native(tmp_path / "model", "llama")
    out = exported(tmp_path / "model", dtype="bfloat16")
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    for name, value in as_hugging_face(weights, "llama").items():
        expected = paddle.to_tensor(value).astype("bfloat16").numpy()
        assert same_bits(stored_in(out)[name][1], expected)


# ---- config.json ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_comes_back(tmp_path, family):
    from paddle_llm.export.source.open import open_source

    write_native(tmp_path / "model", family)
    before, after = (
        open_source(folder).config.to_dict() for folder in (tmp_path / "model", exported(tmp_path / "model"))
    )
    unnamed = (
        {"tie_word_embeddings"} if family == "chatglm_v2" else set()
    )  # PaddleNLP's default says nothing true of it
    assert {key for key in before if before[key] != after.get(key)} <= unnamed


def test_tokens_are_those_that_the_source_names(tmp_path):
    write_native(tmp_path / "model", "llama", eos_token_id=[5, 6], pad_token_id=None)
    config = json.loads((exported(tmp_path / "model") / "config.json").read_text())
    assert config["eos_token_id"] == [5, 6] and config["bos_token_id"] == 1 and config["pad_token_id"] is None


@pytest.mark.parametrize("family", ["llama", "bloom", "opt"])
def test_a_token_that_the_source_does_not_have_gets_no_default_of_transformers(family):
    from types import SimpleNamespace

    import transformers

    from paddle_llm.models.configuration import to_hugging_face as foreign_config

    named = SimpleNamespace(
        bos_token_id=None, eos_token_id=None, pad_token_id=None, vocab_size=300, tie_word_embeddings=True
    )
    spec = FAMILIES[family]
    bare = replace(spec, config_json=replace(spec.config_json, write=lambda config: {"model_type": family}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, family, bare)
        written = foreign_config.hugging_face_config(family, named, dtype="float32")
    found = transformers.AutoConfig.for_model(**written)
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (None, None, None)


def llama_config(**changes):
    from paddlenlp.transformers import LlamaConfig

    from paddle_llm.models.configuration.to_hugging_face import hugging_face_config

    sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 100, "rope_theta": 1e4}
    return hugging_face_config("llama", LlamaConfig(**sizes, **changes), dtype="float32")


def test_positions_of_paddlenlp_are_converted_to_the_form_of_hugging_face():
    found = llama_config(rope_scaling_type="ntk", rope_scaling_factor=2.0)
    assert found["rope_theta"] == pytest.approx(1e4 * 2 ** (16 / 14)) and found["max_position_embeddings"] == 200
    assert "rope_scaling" not in found
    found = llama_config(rope_scaling_type="dynamic_ntk", rope_scaling_factor=2.0)
    assert found["rope_scaling"] == {"rope_type": "dynamic", "factor": 2.0} and found["rope_theta"] == 1e4


STRETCHED = {"rope_scaling_type": "ntk", "rope_scaling_factor": 4.0}


def test_equal_positions_in_another_form_are_not_a_difference(tmp_path):
    """The meaning of the two files is compared, so other positions are a difference."""
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.verification.files import configuration_differences

    write_native(tmp_path / "model", "llama", **STRETCHED)
    source, out = open_source(tmp_path / "model"), exported(tmp_path / "model")
    assert configuration_differences(source, out) == []
    written = json.loads((out / "config.json").read_text())
    assert (written["max_position_embeddings"], "rope_scaling" in written) == (512, False)
    for name, value in (("rope_theta", 10000.0), ("max_position_embeddings", 128)):
        (out / "config.json").write_text(json.dumps(written | {name: value}))
        assert [line.split()[0] for line in configuration_differences(source, out)] == [name]


@pytest.mark.slow
def test_stretched_positions_pass_every_engine(tmp_path):
    from paddle_llm.export import export

    write_native(tmp_path / "model", "llama", **STRETCHED)
    findings = export(tmp_path / "model", "hf", tmp_path / "out").findings
    assert findings and all(finding.passed is not False for finding in findings)


@pytest.mark.parametrize(
    "changes", [{"alibi": True}, {"rope_scaling_type": "yarn"}, {"use_long_sequence_strategies": True}]
)
def test_networks_that_hugging_face_lacks_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        llama_config(**changes)


@pytest.mark.parametrize("family", ["chatglm", "chatglm_v2", "glm"])
def test_networks_of_their_authors_name_the_code_and_where_it_is(tmp_path, family, capsys):
    write_native(tmp_path / "model", family)
    out = exported(tmp_path / "model")
    code = json.loads((out / "config.json").read_text())["auto_map"]
    assert code["AutoConfig"].startswith("configuration_") and code["AutoModelForSeq2SeqLM"].startswith("modeling_")
    printed = capsys.readouterr().err
    assert "THUDM/" in printed and "trust_remote_code=True" in printed
    assert not list(out.glob("*.py"))


# ---- transformers ---------------------------------------------------------------------------------------------------

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
IN_TRANSFORMERS = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama 3": ("llama", {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8}}),
    "llama linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama ntk": ("llama", STRETCHED),
    "qwen2": ("qwen2", {"rope_theta": 1e6}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
    "mistral without a window": ("mistral", {"sliding_window": 4096}),
    "bloom": ("bloom", {}),
    "opt": ("opt", {}),
    "opt 350m": ("opt", {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
}


@pytest.mark.hf
@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_transformers_computes_the_same_and_would_save_the_same(tmp_path, name):
    import torch
    import transformers

    family, changes = IN_TRANSFORMERS[name]
    write_native(tmp_path / "model", family, **changes)
    out = exported(tmp_path / "model", max_shard_size=100_000)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, torch_dtype="auto")
    assert type(model).__module__.startswith("transformers.models.") and model.dtype == torch.float32
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    ids = np.random.default_rng(0).integers(4, 129, (2, 24))
    network = build(tmp_path / "model", load=True, length=24)
    network.eval()
    expected = network(paddle.to_tensor(ids))
    expected = (expected[0] if isinstance(expected, tuple) else expected).numpy()
    with torch.no_grad():
        found = model.eval()(torch.tensor(ids)).logits.numpy()
    assert np.abs(found - expected).max() < 1e-4 * expected.std()
    model.save_pretrained(tmp_path / "theirs")
    theirs, ours = stored_in(tmp_path / "theirs"), stored_in(out)
    assert theirs.keys() == ours.keys()
    assert all(theirs[key][0] == ours[key][0] and same_bits(theirs[key][1], ours[key][1]) for key in theirs)


@pytest.mark.hf
def test_transformers_reads_bfloat16_by_default(tmp_path):
    import torch
    import transformers

    write_config(tmp_path / "model", "llama")
    weights = random_weights(tmp_path / "model", "llama", "bfloat16")
    from paddle_llm.models.weights.files import write_safetensors

    write_safetensors(tmp_path / "model" / "model.safetensors", weights)
    model = transformers.AutoModelForCausalLM.from_pretrained(exported(tmp_path / "model"), torch_dtype="auto")
    assert model.dtype == torch.bfloat16
    table = model.model.embed_tokens.weight.detach().view(torch.int16).numpy().view(np.uint16)
    assert same_bits(table, weights["llama.embed_tokens.weight"])


def test_ids_that_no_token_has_are_written_as_null(tmp_path):
    """Qwen2's class says 151643 where a config.json says nothing."""
    write_native(tmp_path / "model", "qwen2", bos_token_id=151643, eos_token_id=[151643, 5])
    config = json.loads((exported(tmp_path / "model") / "config.json").read_text())
    assert config["eos_token_id"] == [5] and config["bos_token_id"] is None
