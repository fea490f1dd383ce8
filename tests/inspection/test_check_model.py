"""`paddle-llm check-model`: facts, refusals and comparisons of folders, as text and as JSON."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from paddle_llm.cli.check_model import check_model
from paddle_llm.core.errors import UserError
from paddle_llm.inspection.report import Level, Report, Section
from paddle_llm.models.weights.files import is_finite
from tests.helpers import doc_pages
from tests.helpers.chat_tokenizers import BEGIN, END, TURN, write_bare
from tests.helpers.models.folders import train_pieces, write_folder

ROOT = Path(__file__).parents[2]
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
         "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 303, "max_position_embeddings": 64}  # fmt: skip
CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def checked(folder: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    """Return (exit code, report) of `check-model --json`."""
    done = CliRunner().invoke(check_model, [str(folder), "--json", *flags], catch_exceptions=True)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    report = json.loads(done.stdout)
    assert report["exit_code"] == done.exit_code
    return done.exit_code, report


def found(section: dict[str, Any], level: str) -> str:
    return "\n".join(one["text"] for one in section["findings"] if one["level"] == level)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return write_folder("llama", train_pieces(folder), folder / "mine")


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_model_folder_is_described(llama):
    code, report = checked(llama)
    assert code == 0
    assert report["model"]["family"] == "LLaMA" and report["model"]["RoPE"] == "default, theta 10000"
    sizes = sum(value.size for value in load_file(llama / "model.safetensors").values())
    assert report["weights"]["parameters"] == report["weights"]["stored numbers"] == sizes
    assert report["weights"]["files read"] == ["model.safetensors"]
    assert "all 39 weights" in found(report["weights"], "agrees")
    assert report["tokenizer"]["eos"] == {"id": 2, "token": "</s>"} and report["tokenizer"]["tokens"] == 400
    assert report["chat template"]["sample"].endswith("⟦Hello! 😀</s>⟧")
    assert "LlamaConfig has the same sizes" in found(report["transformers"], "agrees")


def test_every_difference_and_refusal_is_named(llama, tmp_path):
    broken = copied(llama, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    code, report = checked(broken)
    assert code == 2 and "model.layers.1.mlp.up_proj.weight" in found(report["weights"], "refused")

    config = json.loads((llama / "config.json").read_text())
    scaled = copied(llama, tmp_path / "scaled")
    rope = {"rope_type": "longrope", "factor": 4.0}
    (scaled / "config.json").write_text(json.dumps({**config, "rope_scaling": rope, "vocab_size": 399}))
    code, report = checked(scaled, "--quick")
    assert code == 2 and "longrope" in found(report["model"], "refused")
    assert "the model's vocabulary of 399" in found(report["tokenizer"], "refused")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_as_training_does(llama, tmp_path, value):
    broken = copied(llama, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].copy()
    tensors["model.norm.weight"][3] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    code, report = checked(broken)
    assert code == 2 and "NaN or infinity in 1 weight: model.norm.weight" in found(report["weights"], "refused")


def test_bfloat16_is_searched_by_its_bits():
    bits = np.array([[0x3F80, 0x7F7F, 0xFF7F, 0x0001]] * 3, np.uint16)
    assert is_finite(bits) and is_finite(np.float32(2.0).reshape(()))
    for wrong in (0x7F80, 0xFF80, 0x7FC0, 0xFFFF):
        bits[2, 1] = wrong
        assert not is_finite(bits)


def test_a_quick_check_names_what_it_did_not_compare(llama):
    printed = CliRunner().invoke(check_model, [str(llama), "--quick"]).stdout
    assert "not compared: names, shapes and values of the weights (--quick)" in printed
    assert printed.splitlines()[-1].endswith("no problem found in what was compared")


def test_a_folder_that_does_not_exist_is_refused_before_paddle_is_imported():
    code = (
        "import sys; from paddle_llm.cli import main as cli; sys.argv[1:] = ['check-model', 'nothere']\n"
        "try: cli.main()\nexcept SystemExit as end: print(end.code, {'paddle', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "2 set()\n" and "nothere is not a folder" in done.stderr


def test_a_tokenizer_folder_with_a_template_is_described(tmp_path):
    folder = tmp_path / "tokenizer"
    write_bare(folder, "PreTrainedTokenizerFast")
    (folder / "chat_template.jinja").write_text(CHAT)
    code, report = checked(folder)
    assert code == 0, report
    assert "model" not in report and report["tokenizer"]["in front of a text"] == BEGIN
    assert {BEGIN, END, TURN} <= report["tokenizer"]["special tokens"].keys()
    assert report["chat template"]["template"] == "jinja"
    assert report["chat template"]["source"] == str(folder / "chat_template.jinja")
    assert "no system message" in found(report["chat template"], "note")
    sample = report["chat template"]["sample"]
    assert sample == (
        f"{BEGIN}<user>What is 2 + 2?{TURN}<assistant>⟦4{TURN}⟧<user>你好{TURN}<assistant>⟦Hello! 😀{TURN}⟧"
    )
    agrees = found(report["transformers"], "agrees")
    assert "gives the same ids" in agrees and "for the sample conversation" in agrees


def test_a_configuration_without_weights_is_described(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "torch_dtype": "bfloat16"}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7], "temperature": 0.5}))
    code, report = checked(tmp_path)
    assert code == 0 and "no weight files" in found(report["weights"], "note")
    assert report["model"]["end ids"] == [2, 7] and report["model"]["declared dtype"] == "bfloat16"


def test_a_difference_from_transformers_in_the_configuration_is_named(tmp_path):
    # GPT-2's name of the size is read here; transformers' LlamaConfig takes its default of 4096.
    (tmp_path / "config.json").write_text(
        json.dumps({key.replace("hidden_size", "n_embd"): value for key, value in LLAMA.items()})
    )
    code, report = checked(tmp_path)
    assert code == 1 and "hidden_size 4096 in transformers, 32 here" in found(report["transformers"], "differs")


def test_adapters_are_described(tmp_path):
    described = {"peft_type": "LOHA", "base_model_name_or_path": "nobody/here", "r": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(described))
    code, report = checked(tmp_path)
    assert code == 2 and report["adapter"]["kind"] == "LOHA" and "LOHA" in found(report["adapter"], "refused")


def test_an_adapter_is_compared_with_its_base(llama, tmp_path):
    described = {"peft_type": "LORA", "base_model_name_or_path": str(llama), "r": 2, "target_modules": ["q_proj"]}
    config = json.loads((Path(llama) / "config.json").read_text())
    width, layers = config["hidden_size"], range(config["num_hidden_layers"])
    names = [f"base_model.model.model.layers.{number}.self_attn.q_proj.lora" for number in layers]
    tensors = {f"{name}_A.weight": np.zeros((2, width), "float32") for name in names}
    tensors |= {f"{name}_B.weight": np.zeros((width, 2), "float32") for name in names}
    (tmp_path / "adapter_config.json").write_text(json.dumps(described))
    for further, code in (({}, 0), ({"base_model.model.other": np.zeros(2, "float32")}, 2)):
        save_file(tensors | further, tmp_path / "adapter_model.safetensors")
        found_code, report = checked(tmp_path)
        assert found_code == code and ("fits its base" in report["adapter"]) == (code == 0)
    assert "belong to no weight of this base" in found(report["adapter"], "refused")


def test_an_empty_folder_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="Give a folder with a model, a tokenizer or an adapter"):
            CliRunner().invoke(check_model, [str(folder)], catch_exceptions=False)


def test_findings_determine_the_exit_code():
    codes = {Level.AGREES: 0, Level.NOTE: 0, Level.NOT_COMPARED: 0, Level.DIFFERS: 1, Level.REFUSED: 2}
    for level, code in codes.items():
        section = Section("model")
        section.add(level, "text")
        assert Report("folder", [section]).exit_code == code
    both = Section("weights")
    both.add(Level.DIFFERS, "text")
    both.add(Level.REFUSED, "text")
    assert Report("folder", [both]).exit_code == 2


@pytest.mark.hf
def test_the_commands_of_the_documentation_run(llama, tmp_path, monkeypatch):
    commands = doc_pages.commands("reference/check_model")
    assert len(commands) == 4
    (tmp_path / "models").mkdir()
    copied(llama, tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    printed = {}
    for command in commands:
        program, name, *words = shlex.split(command)
        assert (program, name) == ("paddle-llm", check_model.name)
        done = CliRunner().invoke(check_model, words)
        assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception}"
        printed[words[-1]] = done.stdout
    assert "\x1b" not in printed["models/mine"] and "no problem found" in printed["models/mine"]
    assert json.loads(printed["--json"])["tokenizer"]["tokens"] == 400
    assert "80 of 80 greedy tokens equal" in printed["--compare"]
    script = Path(sys.executable).parent / "paddle-llm"
    done = subprocess.run([script, "check-model", "models/mine", "--quick"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == printed["--quick"], done.stderr
