"""The shape of a model from its config.json, with the key names of each family."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from paddle_llm.config.local_files.adapters import describe_folder
from paddle_llm.config.local_files.model_folder import find_model_folder, read_model_facts
from paddle_llm.core.errors import UserError
from paddle_llm.families.facts import ModelFacts
from tests.helpers.models.tiny import write_bloom, write_chatglm, write_chatglm2, write_llama, write_llama_hf5


def shape(facts: ModelFacts) -> tuple[object, ...]:
    return (
        facts.model_type,
        facts.hidden_size,
        facts.num_hidden_layers,
        facts.num_attention_heads,
        facts.num_key_value_heads,
        facts.head_dim,
        facts.intermediate_size,
        facts.vocab_size,
        facts.max_position_embeddings,
        facts.tie_word_embeddings,
    )


def test_the_shape_of_llama_is_read(tmp_path: Path) -> None:
    facts = read_model_facts(write_llama(tmp_path))
    assert shape(facts) == ("llama", 64, 4, 4, 4, 16, 172, 128, 128, False)
    assert facts.architectures == ("LlamaForCausalLM",)
    assert facts.raw["rms_norm_eps"] == 1e-6
    assert not facts.rope_is_scaled


def test_grouped_heads_and_tied_embeddings_are_read(tmp_path: Path) -> None:
    facts = read_model_facts(write_llama(tmp_path, num_key_value_heads=2, tie_word_embeddings=True))
    assert facts.num_key_value_heads == 2 and facts.tie_word_embeddings


def test_llama_without_key_value_heads_has_as_many_as_heads(tmp_path: Path) -> None:
    assert read_model_facts(write_llama(tmp_path, num_key_value_heads=None)).num_key_value_heads == 4


@pytest.mark.parametrize(
    ("writer", "overrides", "scaled"),
    [
        (write_llama_hf5, {}, False),
        (write_llama_hf5, {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, True),
        (write_llama, {"rope_scaling": {"type": "linear", "factor": 2.0}}, True),
        (write_llama, {"rope_scaling": {"rope_type": "default"}}, False),
        (write_llama, {"rope_scaling_type": "linear"}, True),
    ],
)
def test_scaled_rotary_embeddings_are_recognised(
    tmp_path: Path, writer: object, overrides: dict[str, object], scaled: bool
) -> None:
    assert read_model_facts(writer(tmp_path, **overrides)).rope_is_scaled is scaled  # type: ignore[operator]


def test_the_three_chatglm_are_distinguished(tmp_path: Path) -> None:
    first = read_model_facts(write_chatglm(tmp_path / "1"))
    assert shape(first) == ("chatglm", 64, 4, 4, 4, 16, 256, 128, 128, True)
    second = read_model_facts(write_chatglm2(tmp_path / "2"))
    assert shape(second) == ("chatglm_v2", 64, 4, 4, 2, 16, 96, 128, 128, False)
    paddle_names = {"model_type": "chatglm_v2", "num_layers": None, "num_hidden_layers": 4, "seq_length": None}
    paddle_names |= {"max_sequence_length": 64, "padded_vocab_size": None, "vocab_size": 256}
    third = read_model_facts(write_chatglm2(tmp_path / "3", **paddle_names))
    assert (third.model_type, third.vocab_size, third.max_position_embeddings) == ("chatglm_v2", 256, 64)
    without = read_model_facts(write_chatglm2(tmp_path / "4", multi_query_attention=False))
    assert without.num_key_value_heads == 4


def test_bloom_has_no_maximum_position(tmp_path: Path) -> None:
    facts = read_model_facts(write_bloom(tmp_path, seq_length=2048))
    assert shape(facts) == ("bloom", 64, 4, 4, 4, 16, 256, 128, None, True)


def test_a_family_is_recognised_by_its_architecture_alone(tmp_path: Path) -> None:
    assert read_model_facts(write_llama(tmp_path, model_type=None)).model_type == "llama"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON: line 1"),
        ("[]", "must contain a JSON object"),
        (
            '{"model_type": "llama"}',
            "does not have hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, vocab_size",
        ),
        ('{"hidden_size": "64"}', "hidden_size must be a whole number of at least 1, not '64'"),
        ('{"num_hidden_layers": 0}', "num_hidden_layers must be a whole number of at least 1, not 0"),
    ],
)
def test_an_invalid_config_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json") as caught:
        read_model_facts(tmp_path)
    assert message in str(caught.value)


def test_the_message_about_a_missing_folder_shows_the_local_form(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--model_name_or_path /path/to/llama-7b"):
        read_model_facts("facebook/llama-7b")
    with pytest.raises(UserError, match="A model folder needs its config.json"):
        read_model_facts(tmp_path)


def test_an_adapter_in_place_of_a_model_is_named(tmp_path: Path) -> None:
    adapter = tmp_path / "run" / "checkpoint-7"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(UserError, match=r"is an adapter.*org/base.*--lora_path .*checkpoint-7"):
        read_model_facts(adapter)
    with pytest.raises(UserError, match=r"needs its config.json. Adapters are in .*checkpoint-7\."):
        read_model_facts(adapter.parent)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("snapshots/0123abc/config.json", "download cache. Give .*snapshots/0123abc"),
        ("Qwen2-0.5B/config.json", "The files are in a subfolder. Give .*Qwen2-0.5B"),
        ("consolidated.00.pth", "Meta's format"),
        ("model-q4_k_m.gguf", "GGUF files"),
    ],
)
def test_a_folder_in_another_layout_is_named(tmp_path: Path, name: str, message: str) -> None:
    file = tmp_path / "models--a--b" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"{}")
    with pytest.raises(UserError, match=message):
        read_model_facts(tmp_path / "models--a--b")


def test_the_output_folder_of_a_run_names_its_model(tmp_path: Path) -> None:
    for name in ("checkpoint-20", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"Give {tmp_path}/model\.$"):
        read_model_facts(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("lora_config.json", "PaddleNLP's LoRA.*merge_lora_params"),
        ("adapters.safetensors", "MLX's LoRA"),
        ("config.json", "a complete model"),
        ("checkpoint-1/adapter_config.json", "Adapters are in .*checkpoint-1"),
    ],
)
def test_a_folder_given_as_an_adapter_is_described(file: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert re.search(message, describe_folder(tmp_path))
    assert describe_folder(tmp_path / "nothing") == ""


def test_a_model_is_found_in_the_folders_that_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPNLP_HOME", str(tmp_path / "cache"))
    folder = write_llama(tmp_path / "here")
    assert find_model_folder(str(folder)) == folder
    assert find_model_folder("some/model") is None
    cached = write_llama(tmp_path / "cache" / "models" / "some" / "model")
    assert find_model_folder("some/model") == cached
    with pytest.raises(UserError, match="no such folder exists"):
        find_model_folder(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is a file"):
        find_model_folder(str(folder / "config.json"))


def test_the_raw_facts_are_the_complete_file(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    assert read_model_facts(folder).raw == json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("writer", "overrides", "limit"),
    [
        (write_llama, {"max_position_embeddings": 64}, 64),
        (write_llama, {"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
        (write_llama, {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, None),
        (write_llama, {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 64),
        (write_llama, {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, 64),
        (write_llama, {"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": "4"}}, 64),
        (write_llama, {"max_position_embeddings": 64, "rope_scaling": None}, 64),
        (
            write_llama,
            {"max_position_embeddings": 64, "rope_scaling_type": "ntk", "rope_scaling_factor": 2.0},
            128,
        ),
        (write_bloom, {}, None),
    ],
)
def test_the_maximum_position_depends_on_the_scaling(
    tmp_path: Path, writer: object, overrides: dict[str, object], limit: int | None
) -> None:
    writer(tmp_path, **overrides)
    assert read_model_facts(tmp_path).position_limit == limit


def test_a_name_without_an_owner_that_paddlenlp_lacks_is_a_mistake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPNLP_HOME", str(tmp_path / "cache"))
    (tmp_path / "my_llama").mkdir()
    for name, message in (
        ("my_lama", "Did you mean my_llama?"),
        ("./my_lama", "Did you mean my_llama?"),
        ("other", "neither a folder nor a name built into PaddleNLP."),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            find_model_folder(name)
    assert find_model_folder("gpt2-en") is None and find_model_folder("facebook/opt-1.3b") is not None
    (tmp_path / "cache/models/other").mkdir(parents=True)
    assert find_model_folder("other") is None  # downloaded without its config.json
