"""The one resolver of "which folder did the user mean": what each command accepts, and the message for everything else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_llm.checkpoint.locate import (
    ModelFolders,
    locate_adapter,
    locate_base,
    locate_export_source,
    locate_model,
    report_other_base,
)
from paddle_llm.checkpoint.run_record import recorded_argument
from paddle_llm.checkpoint.tokenizer_folder import locate_tokenizer
from paddle_llm.core.errors import UserError

_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 172,
    "vocab_size": 128,
}


def write_model(folder: Path, *, tokenizer: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(_LLAMA))
    (folder / "model.safetensors").touch()
    if tokenizer:
        (folder / "tokenizer_config.json").write_text("{}")
    return folder


def write_adapter(folder: Path, base: str | Path = "", key: str = "base") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({key: str(base)}))
    (folder / "adapter_model.safetensors").touch()
    return folder


def write_checkpoint(folder: Path, method: str = "full") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(_LLAMA))
    record = {
        "step": 3,
        "layout": {},
        "global_batch": 8,
        "files": {},
        "identity": {"method": {"name": method}},
    }
    (folder / "manifest.json").write_text(json.dumps(record))
    return folder


def write_record(output: Path, **arguments: str) -> None:
    record = {"arguments": {name: {"value": value, "from": "flag"} for name, value in arguments.items()}}
    (output / "config.resolved.json").write_text(json.dumps(record))


def test_a_model_folder_and_the_output_of_a_run_name_the_same_model(tmp_path, capsys):
    model = write_model(tmp_path / "output" / "model")
    for named in (model, tmp_path / "output"):
        assert locate_model(named) == model
        assert locate_export_source(named) == ModelFolders(model, None, model)
    assert capsys.readouterr().err.count(f"{tmp_path}/output is the output folder of a run: using {model}.") == 2


def test_an_adapter_folder_and_the_output_of_a_run_name_the_same_adapter(tmp_path, capsys):
    adapter = write_adapter(tmp_path / "output" / "adapter")
    assert locate_adapter(adapter) == adapter
    assert locate_adapter(tmp_path / "output") == adapter
    assert f"{tmp_path}/output is the output folder of a run: using {adapter}." in capsys.readouterr().err


def test_an_export_combines_an_adapter_with_the_base_that_it_names(tmp_path, capsys):
    base = write_model(tmp_path / "base")
    adapter = write_adapter(tmp_path / "output" / "adapter", base)
    for named in (adapter, tmp_path / "output"):
        assert locate_export_source(named) == ModelFolders(base, adapter, base)
    assert locate_export_source(base, adapter=tmp_path / "output") == ModelFolders(base, adapter, base)
    assert f"{adapter} is an adapter: adding it to its base model {base}." in capsys.readouterr().err


def test_an_export_takes_the_newest_complete_checkpoint_of_an_unfinished_run(tmp_path, capsys):
    write_checkpoint(tmp_path / "checkpoint-3")
    (write_checkpoint(tmp_path / "checkpoint-6") / "manifest.json").unlink()
    assert locate_export_source(tmp_path).model == tmp_path / "checkpoint-3"
    lines = capsys.readouterr().err
    assert "checkpoint-6" in lines and "it has no manifest.json" in lines
    assert f"{tmp_path} contains no finished model: using checkpoint {tmp_path}/checkpoint-3." in lines


def test_a_checkpoint_of_an_adapter_training_is_combined_with_the_recorded_base(tmp_path):
    base = write_model(tmp_path / "base")
    checkpoint = write_checkpoint(tmp_path / "output" / "checkpoint-3", method="lora")
    write_record(tmp_path / "output", model_name_or_path=str(base))
    for named in (checkpoint, tmp_path / "output"):
        assert locate_export_source(named) == ModelFolders(base, checkpoint, base)
        assert locate_export_source(base, adapter=named) == ModelFolders(base, checkpoint, base)
        with pytest.raises(UserError, match=r"is not an adapter: it has no adapter_config\.json"):
            locate_adapter(named)


@pytest.mark.parametrize("locate", [locate_model, locate_export_source, locate_adapter])
def test_a_path_that_is_not_a_folder_is_reported_alike(tmp_path, locate):
    with pytest.raises(UserError, match=rf"^{tmp_path}/absent is not a folder\. Give a"):
        locate(tmp_path / "absent")


@pytest.mark.parametrize("locate", [locate_model, locate_export_source])
class TestFoldersWithoutModel:
    def test_an_empty_folder_names_everything_that_is_missing(self, tmp_path, locate):
        with pytest.raises(
            UserError,
            match=r"contains no model: it has no config\.json, model/, adapter/ or complete checkpoint\. "
            r"Give a model folder or the output folder of a run\.$",
        ):
            locate(tmp_path)

    def test_a_model_one_folder_below_is_suggested(self, tmp_path, locate):
        write_model(tmp_path / "mine")
        with pytest.raises(UserError, match=rf"The files are in a subfolder\. Give {tmp_path}/mine\.$"):
            locate(tmp_path)

    def test_an_output_folder_one_folder_below_is_suggested(self, tmp_path, locate):
        write_model(tmp_path / "runs" / "mine" / "model")
        with pytest.raises(UserError, match=rf"Did you mean {tmp_path}/runs/mine\?$"):
            locate(tmp_path / "runs")

    def test_a_download_cache_names_its_snapshot(self, tmp_path, locate):
        snapshot = write_model(tmp_path / "snapshots" / "abc")
        with pytest.raises(UserError, match=rf"It is a download cache\. Give {snapshot}\.$"):
            locate(tmp_path)

    def test_an_adapter_without_its_description_is_incomplete(self, tmp_path, locate):
        (tmp_path / "adapter_model.safetensors").touch()
        with pytest.raises(
            UserError, match=r"is an incomplete adapter: .* no adapter_config\.json\. Copy adapter_config\.json to it"
        ):
            locate(tmp_path)

    def test_a_config_without_weights_is_not_a_model(self, tmp_path, locate):
        (write_model(tmp_path / "model") / "model.safetensors").unlink()
        with pytest.raises(UserError, match=r"has no weights \(model\.safetensors"):
            locate(tmp_path / "model")


def test_generation_names_the_base_of_an_adapter_that_is_given_as_model(tmp_path):
    adapter = write_adapter(tmp_path / "output" / "adapter", "facebook/llama-7b")
    for named in (adapter, tmp_path / "output"):
        with pytest.raises(
            UserError,
            match=rf"^{adapter} is an adapter, not a model\. "
            rf"Give its base model: facebook/llama-7b --adapter {adapter}\.$",
        ):
            locate_model(named)


def test_generation_reports_how_a_checkpoint_becomes_a_model(tmp_path):
    write_checkpoint(tmp_path / "checkpoint-3")
    with pytest.raises(UserError, match=rf"only checkpoints\. .*paddle-llm export {tmp_path}/checkpoint-3 OUT"):
        locate_model(tmp_path)


def test_an_export_rejects_two_adapters_and_two_models(tmp_path):
    model, adapter = write_model(tmp_path / "model"), write_adapter(tmp_path / "adapter", "x/y")
    with pytest.raises(
        UserError,
        match=rf"^{adapter} is an adapter: --adapter .* Give the folder of the base model instead of {adapter}\.",
    ):
        locate_export_source(adapter, adapter=adapter)
    with pytest.raises(
        UserError, match=r"is not an adapter: it has no adapter_config\.json\. It contains a complete model\."
    ):
        locate_export_source(model, adapter=model)


def test_an_export_rejects_a_static_export_and_parts_of_a_checkpoint(tmp_path):
    static = write_model(tmp_path / "static")
    (static / "step.json").write_text("{}")
    with pytest.raises(UserError, match="is a static export: .*Export the original model again"):
        locate_export_source(static)
    parts = write_model(tmp_path / "checkpoint-3")
    (parts / "model.safetensors").rename(parts / "model_state.tp00.pdparams")
    with pytest.raises(UserError, match=r"is not a complete checkpoint: it has no manifest\.json\. Choose another"):
        locate_export_source(parts)


def test_an_export_reports_a_checkpoint_without_manifest(tmp_path, capsys):
    folder = write_model(tmp_path / "checkpoint-3")
    (folder / "trainer_state.json").write_text("{}")
    locate_export_source(folder)
    assert f"{folder} has no manifest.json: the checkpoint may be incomplete." in capsys.readouterr().err


def test_a_relative_base_is_found_from_here_and_from_the_adapter_folder(tmp_path, monkeypatch):
    base = write_model(tmp_path / "base")
    (tmp_path / "elsewhere").mkdir()
    for number, (working_folder, name) in enumerate(((tmp_path, "base"), (tmp_path / "elsewhere", "../base"))):
        adapter = write_adapter(tmp_path / f"adapter-{number}", name, key="base_model_name_or_path")
        monkeypatch.chdir(working_folder)
        found = locate_base(adapter)
        assert found.folder is not None and found.folder.resolve() == base
        assert found.name == str(base) and found.problem == ""


def test_a_base_in_the_working_folder_goes_before_one_in_the_adapter_folder(tmp_path, monkeypatch):
    here = write_model(tmp_path / "here" / "models")
    adapter = write_adapter(tmp_path / "adapter", "models")
    write_model(adapter / "models")
    monkeypatch.chdir(tmp_path / "here")
    assert locate_base(adapter).name == str(here)


def test_a_missing_base_names_both_folders_that_were_tried(tmp_path, monkeypatch):
    adapter = write_adapter(tmp_path / "adapter", "models/gone")
    monkeypatch.chdir(tmp_path)
    base = locate_base(adapter)
    tried = f"(tried {tmp_path}/models/gone and {adapter}/models/gone)"
    assert base.folder is None and base.name == "models/gone"
    assert base.problem == f"base model models/gone of adapter {adapter} was not found {tried}"
    with pytest.raises(UserError) as error:
        locate_export_source(adapter)
    expected = f"Base model models/gone of adapter {adapter} was not found {tried}. "
    expected += f"Give the folder of the base model: paddle-llm export BASE --adapter {adapter} OUT."
    assert str(error.value) == expected


def test_an_adapter_without_a_base_can_still_be_given_one(tmp_path):
    adapter, model = write_adapter(tmp_path / "adapter"), write_model(tmp_path / "output" / "model")
    assert locate_base(adapter).problem == f"{adapter} does not name its base model"
    assert locate_base(adapter, tmp_path / "output").name == str(model)
    published = locate_base(adapter, "facebook/llama-7b")
    assert published.name == "facebook/llama-7b"
    with pytest.raises(UserError, match=rf"^--base {tmp_path}/gone does not exist\. Give a model folder\.$"):
        locate_base(adapter, tmp_path / "gone")


def test_a_base_name_that_is_not_text_is_reported(tmp_path):
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text('{"base": 3}')
    with pytest.raises(
        UserError, match=r"adapter_config\.json: the base model is not a string: 3\. Write the folder or the name"
    ):
        locate_base(adapter)


def test_only_another_base_than_its_own_is_reported(tmp_path, capsys):
    base, other = write_model(tmp_path / "base"), write_model(tmp_path / "other")
    adapter = write_adapter(tmp_path / "adapter", base)
    report_other_base(adapter, base)
    assert capsys.readouterr().err == ""
    report_other_base(adapter, other)
    line = (
        f"{adapter} was trained with base model {base}, but is added to {other}. Only the shapes of the weights are compared; "
        "the result may be wrong."
    )
    assert line in capsys.readouterr().err


def test_the_tokenizer_is_the_named_one_else_the_adapters_else_the_models(tmp_path, capsys):
    model, adapter = write_model(tmp_path / "model"), write_adapter(tmp_path / "adapter")
    named = write_model(tmp_path / "named")
    assert locate_tokenizer(model, adapter=adapter) == model
    (adapter / "tokenizer.json").touch()
    assert locate_tokenizer(model, adapter=adapter) == model
    assert (
        "has a tokenizer.json but no tokenizer_config.json: using the tokenizer of the base" in capsys.readouterr().err
    )
    (adapter / "tokenizer_config.json").write_text("{}")
    assert locate_tokenizer(model, adapter=adapter) == adapter
    assert locate_tokenizer(model, adapter=adapter, named=named) == named


def test_a_missing_tokenizer_is_an_error_only_where_one_is_required(tmp_path):
    model = write_model(tmp_path / "model", tokenizer=False)
    assert locate_tokenizer(model) is None
    with pytest.raises(UserError, match=r"has no tokenizer_config\.json\. Give a tokenizer folder with --tokenizer\.$"):
        locate_tokenizer(model, required=True)


def test_a_named_tokenizer_is_a_folder_or_a_published_name(tmp_path):
    model = write_model(tmp_path / "model")
    assert locate_tokenizer(model, named=Path("facebook/llama-7b"), allow_published_name=True) == Path(
        "facebook/llama-7b"
    )
    for name, allowed, problem in (
        ("facebook/llama-7b", False, r"--tokenizer facebook/llama-7b has no tokenizer_config\.json"),
        (tmp_path, True, r"has no tokenizer_config\.json\. Give a tokenizer folder\.$"),
        (tmp_path / "modl", True, rf"does not exist\. Did you mean {model}\? Give a tokenizer folder\.$"),
        ("no-such-name", True, "neither a folder nor a name built into PaddleNLP"),
    ):
        with pytest.raises(UserError, match=problem):
            locate_tokenizer(model, named=Path(name), allow_published_name=allowed)


def test_a_recorded_argument_is_read_from_the_output_folder(tmp_path):
    model = write_model(tmp_path / "output" / "model")
    assert recorded_argument(model, "chat_template") is None
    write_record(tmp_path / "output", chat_template="chatml")
    assert recorded_argument(model, "chat_template") == "chatml"
    assert recorded_argument(model, "model_name_or_path") is None


def test_a_folder_is_resolved_without_importing_paddle_or_torch():
    code = "import sys, paddle_llm.checkpoint.locate; sys.exit(any(m in sys.modules for m in ('paddle', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
