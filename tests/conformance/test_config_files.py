"""Config files: formats and keys of other trainers get one message; any content gives a config or a message."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_llm.config.legacy.other_trainers import COUNTERPARTS, TYPICAL_KEYS, VALUES
from paddle_llm.config.legacy.translate import KNOWN_NAMES
from paddle_llm.config.reader import resolve
from paddle_llm.config.run_config import FIELD_NAMES
from paddle_llm.core.errors import ConfigError
from paddle_llm.training.launch.options import LaunchOptions
from tests.helpers.models.tiny import write_llama

_OWN = {"do_train": True, "output_dir": "o", "report_to": "none", "max_steps": 1}


def problems(file, entry: str = "finetune", *flags: str) -> list[str]:
    try:
        resolve([str(file), *flags], world_size=1, entry=entry, device=None if "--device" in flags else "cpu")
    except ConfigError as error:
        return error.problems
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("configs")


# ---- the table ------------------------------------------------------------------------------------------------------


def test_every_counterpart_is_a_field_and_no_foreign_key_is_one():
    not_fields = {"help", "author", "name", "key", *(field.name for field in dataclasses.fields(LaunchOptions))}
    for name, text in COUNTERPARTS.items():
        assert name not in FIELD_NAMES and name not in KNOWN_NAMES, name
        assert set(re.findall(r"--(\w+)", text)) <= {*FIELD_NAMES, *not_fields}, name
    assert set(VALUES) <= set(FIELD_NAMES)
    for trainer, keys in TYPICAL_KEYS.items():
        assert not keys & {*FIELD_NAMES, *KNOWN_NAMES}, trainer


@pytest.mark.hf
def test_every_argument_of_transformers_has_a_counterpart():
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    names = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    assert names <= {*FIELD_NAMES, *KNOWN_NAMES, *COUNTERPARTS}


# ---- formats --------------------------------------------------------------------------------------------------------

_LLAMA_FACTORY = """\
### method
stage: sft
finetuning_type: lora
lora_target: all
deepspeed: examples/deepspeed/ds_z3_config.json  # choices: [ds_z0_config.json]
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
do_train: true
optim: adamw_torch
"""
_AXOLOTL = """\
base_model: NousResearch/Llama-3.2-1B
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
adapter: lora
sequence_len: 2048
sample_packing: true
"""
_SWIFT = {
    "model": "Qwen/Qwen2.5-7B",
    "train_type": "lora",
    "dataset": ["a#500"],
    "torch_dtype": "bfloat16",
    "deepspeed": "zero2",
}
_DEEPSPEED = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, "gradient_clipping": "auto"}
_TRAINING_ARGUMENTS = {
    "eval_strategy": "steps",
    "gradient_checkpointing": True,
    "fsdp": "full_shard",
    "push_to_hub": False,
}
_ACCELERATE = "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nfsdp_config:\n  fsdp_offload_params: false\nnum_processes: 8\n"
_MEGATRON = {"tensor_model_parallel_size": 2, "train_iters": 10, "use_distributed_optimizer": True}


@pytest.mark.parametrize(
    ("name", "text", "trainer", "counterparts"),
    [
        ("a.yaml", _LLAMA_FACTORY, "LLaMA-Factory", ["is YAML", "ZeRO stage 3 is --sharding stage3", "--lora_target_modules",
                                                     "dataset_name_or_path?", "chat_template?", "max_length?", "Use adamw."]),
        ("b.yml", _AXOLOTL, "axolotl", ["is YAML", "--model_name_or_path", "--dataset_name_or_path", "`lora`: true",
                                        "--max_length", "--zero_padding"]),
        ("c.json", json.dumps(_SWIFT), "ms-swift", ["--model_name_or_path", "for lora, --lora", "--sharding stage2"]),
        ("d.json", json.dumps(_DEEPSPEED), "DeepSpeed", ["--sharding 'stage2 offload'", "--max_grad_norm"]),
        ("e.json", json.dumps(_TRAINING_ARGUMENTS), "transformers", ["--evaluation_strategy", "--recompute", "--sharding stage3"]),
        ("f.yaml", _ACCELERATE, "accelerate", ["is YAML", "paddle.distributed.launch", "--sharding stage3"]),
        ("g.json", json.dumps(_MEGATRON), "Megatron-LM", ["--tensor_parallel_degree", "max_steps?", "--sharding stage1"]),
    ],
)  # fmt: skip
def test_the_config_of_another_trainer_gets_the_counterpart_of_every_key(name, text, trainer, counterparts, folder):
    (folder / name).write_text(text)
    found = problems(folder / name)
    assert any(f"written for {trainer}: it has the keys " in line for line in found)
    for part in counterparts:
        assert any(part in line for line in found), part
    assert not any("is missing" in line for line in found)


def test_a_foreign_key_without_effect_is_accepted(folder):
    file = folder / "nothing.json"
    file.write_text(json.dumps({**_OWN, "deepspeed": None, "fsdp": "", "push_to_hub": False, "group_by_length": False}))
    assert not any(
        "deepspeed" in line or "fsdp" in line or "push" in line or "group" in line for line in problems(file)
    )
    file.write_text(json.dumps({**_OWN, "dataset_shuffle": False}))
    assert any("Samples are shuffled in every epoch" in line for line in problems(file))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{\n  // steps\n  "max_steps": 1\n}', "line 2, column 3: a comment."),
        (b'// steps\n{\n"max_steps": 1\n}', "line 1, column 1: a comment."),
        (b'{"max_steps": 1, # steps\n}', "a comment."),
        (b'/* steps */ {"max_steps": 1}', "a comment."),
        (b'{\n  "max_steps": 1,\n}', "line 3, column 1: a comma before }."),
        (b'{"report_to": ["none",]}', "a comma before ]."),
        (b"{'max_steps': 1}", "a single quote."),
        (b'{max_steps: 1}', "a key without quotes."),
        (b'{"do_train": True}', "True is Python's notation. Write true."),
        (b'{"seed": None}', "None is Python's notation. Write null."),
        (b'{"output_dir": "C:\\data"}', "a single backslash."),
        (b'{"max_steps": 1} {"max_steps": 2}', "text after the end of the object."),
        (b'{"max_steps": 1', "the file ends before the object is closed."),
        (b'{"output_dir": "x', "a text without a closing double quote."),
        (b'{"output_dir": "a\tb"}', "a tab or line break inside a text."),
        (b'{"max_steps": 1 "seed": 2}', "Expecting ',' delimiter"),
        (b'{"seed": 0x2a}', "0x2a is not a JSON number."),
        (b'{"seed": -042}', "-042 is not a JSON number."),
        (b'{"seed": [1_000]}', "1_000 is not a JSON number."),
        (b'{"learning_rate": +1e-4}', "+1e-4 is not a JSON number."),
        (b'{"learning_rate":.1e-4}', ".1e-4 is not a JSON number."),
        (b'{"learning_rate": 1.}', "1. is not a JSON number."),
        (b'{"do_train": yes}', "yes is not a JSON value."),
        ('{\u201cmax_steps\u201d: 1}'.encode(), "a typographic quote"),
        (b"", "the file is empty."),
        (b"\n \n", "the file is empty."),
        (b'{"max_steps": NaN}', "NaN is not a JSON value."),
        (b'{"max_steps": 1, "max_steps": 2}', 'duplicate key "max_steps". Keep one of them.'),
        (b'[{"max_steps": 1}]', "contains a list. Write one JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"max_steps": ' + b"1" * 5000 + b"}", "is not valid JSON"),
        ('{"output_dir": "\u4f60\u597d"}'.encode("gbk"), "is not UTF-8 text: line 1, byte 0xc4."),
        ('{"max_steps": 1}'.encode("utf-16"), "is UTF-16 text"),
        ('{"max_steps": 1}'.encode("utf-16-le"), "is UTF-16 text"),
        (b"\x80\x04\x95\x00\x00\x00", "is not text"),
        (b"max_steps = 1\n[data]\n", "is TOML"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_plain_json_is_one_problem_with_its_cause(text, expected, folder):
    file = folder / "broken.json"
    file.write_bytes(text)
    found = problems(file)
    assert expected in found[0] and str(file) in found[0]
    assert not expected.startswith(("line", "a ")) or len(found) == 1


def test_words_instead_of_a_checkpoint_folder_are_an_error_with_a_remedy(folder, monkeypatch):
    monkeypatch.chdir(folder)
    file = folder / "resume.json"
    for value, expected in (
        (True, "newest complete"),
        ("latest", "newest complete"),
        (False, "overwrite"),
        ("False", "overwrite"),
    ):
        file.write_text(json.dumps({**_OWN, "resume_from_checkpoint": value}))
        (line,) = [line for line in problems(file) if "resume_from_checkpoint" in line]
        assert expected in line
    (folder / "latest").mkdir()
    file.write_text(json.dumps({**_OWN, "resume_from_checkpoint": "latest"}))
    assert not any("resume_from_checkpoint" in line for line in problems(file))


def test_noise_of_neftune_that_another_trainer_would_add_is_reported(folder):
    model = write_llama(folder / "neftune")
    flags = ["--model_name_or_path", str(model), "--do_train", "--output_dir", "o", "--continue_training", "0"]

    def notices(value: str) -> list[str]:
        resolved = resolve([*flags, "--neftune_noise_alpha", value], world_size=1, entry="finetune", device="cpu")
        return [line for line in resolved.notices if "neftune" in line]

    assert "NEFTune, which is not supported" in notices("5")[0]
    assert notices("0") == notices("null") == []


@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
def test_noise_of_neftune_is_reported_in_a_config_of_another_trainer(folder, name):
    keys = {"stage": "sft", "finetuning_type": "lora", "template": "qwen", "neftune_noise_alpha": 5}
    file = folder / name
    file.write_text(json.dumps(keys) if name == "a.json" else "".join(f"{key}: {keys[key]}\n" for key in keys))
    assert any("NEFTune, which is not supported" in line for line in problems(file))


def test_keys_of_fine_tuning_name_their_script_in_a_config_for_pretraining(folder):
    file = folder / "script.json"
    keys = {"stage": "pt", "dataset": "a", "template": "qwen", "cutoff_len": 8, "lora_target": "all"}
    file.write_text(json.dumps(keys))
    found = {key: next(line for line in problems(file, "pretrain") if line.startswith(f'"{key}"')) for key in keys}
    for key in ("dataset", "template", "lora_target"):
        assert "belongs to finetune_generation.py. Remove it here" in found[key]
    assert "--max_seq_length" in found["cutoff_len"]
    assert not any("Did you mean" in line or "--help" in line for line in found.values())


def test_a_byte_order_mark_is_accepted(folder):
    file = folder / "mark.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({**_OWN, "seed": "x"}).encode())
    assert any("seed" in line for line in problems(file))
    assert not any("JSON" in line or "UTF" in line for line in problems(file))


# ---- hostile files --------------------------------------------------------------------------------------------------

_KEYS = st.sampled_from([*FIELD_NAMES, *COUNTERPARTS, *KNOWN_NAMES]) | st.text(max_size=8)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
_PATHS = st.sampled_from(
    ["~/x", "$HOME/x", "$NO_SUCH", "${", "0.5 a 0.5 b", "a\0b", "\ud800", "", " ", "/", ".", "~~", "1 2 3"]
)
_VALUES = st.recursive(
    _SCALARS | _PATHS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@given(st.dictionaries(_KEYS, _VALUES, max_size=8), st.sampled_from(["finetune", "pretrain"]))
def test_any_object_is_a_config_or_one_message(folder, config, entry):
    """Read a config that is correct except for the given content, with the folders of this machine."""
    (folder / "x.jsonl").write_text('{"src": "a", "tgt": "b"}\n')
    data = "dataset_name_or_path" if entry == "finetune" else "input_dir"
    own = {**_OWN, "model_name_or_path": str(write_llama(folder / "m")), data: str(folder / "x.jsonl")}
    file = folder / "fuzz.json"
    file.write_text(json.dumps({**own, **config}))
    for line in problems(file, entry, "--device", "cpu"):
        assert line.strip()


@given(st.binary(max_size=120) | st.text(max_size=120).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_are_a_config_or_one_message(folder, payload):
    file = folder / "fuzz.json"
    file.write_bytes(payload)
    assert problems(file)


@given(
    st.lists(
        st.sampled_from(["--", "-x", "=", "--max_steps", "--output_dir", "$NO", "~", "1", "--lora", "--deepspeed=z"]),
        max_size=6,
    )
)
def test_any_flags_are_a_config_or_one_message(flags):
    try:
        resolve(flags, world_size=1, entry="finetune", device="cpu")
    except ConfigError as error:
        assert error.problems
