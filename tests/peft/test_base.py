"""The base model of an adapter: found from any working directory, and stored by its absolute path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddle_llm.checkpoint.locate import locate_adapter, report_other_base
from paddle_llm.core.errors import UserError
from paddle_llm.peft.adapter_files import read_adapter_config
from paddle_llm.peft.method import Method
from tests.export.test_merged import base_folder, network_of, trained_adapter

CONFIG = "adapter_config.json"


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A base model in tmp_path/base and its adapter in tmp_path/adapter."""
    base = base_folder(tmp_path / "base", "llama", num_hidden_layers=1)
    return trained_adapter(tmp_path / "adapter", base, Method("lora", rank=2, targets=("q_proj",)))


def named(adapter: Path, base: str, key: str = "base") -> Path:
    described = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(described | {key: base}))
    return adapter


def written(adapter: Path, key: str = "base") -> str:
    return json.loads((adapter / CONFIG).read_text())[key]


def test_a_relative_base_is_found_from_the_working_directory_and_the_adapter_folder(adapter, tmp_path, monkeypatch):
    from paddle_llm.export.source.open import open_source
    from tests.helpers.convert import to_peft

    (tmp_path / "some" / "where").mkdir(parents=True)
    for place, base in ((tmp_path, "base"), (tmp_path / "some" / "where", "../base")):
        monkeypatch.chdir(place)
        source = open_source(named(adapter, base))
        assert source.folder.resolve() == tmp_path / "base" and source.adapter == adapter
        to_peft(adapter, tmp_path / f"as {base.replace('/', ' ')}")
        assert written(tmp_path / f"as {base.replace('/', ' ')}", "base_model_name_or_path") == str(tmp_path / "base")


def test_the_working_directory_takes_precedence(adapter, tmp_path, monkeypatch):
    from paddle_llm.export.source.open import open_source

    base_folder(tmp_path / "here" / "models", "llama", num_hidden_layers=1)
    base_folder(adapter / "models", "llama", num_hidden_layers=1)
    monkeypatch.chdir(tmp_path / "here")
    assert open_source(named(adapter, "models")).folder.resolve() == tmp_path / "here" / "models"


def test_a_missing_base_is_reported_with_both_places(adapter, tmp_path, monkeypatch):
    from paddle_llm.export.source.open import open_source
    from tests.helpers.convert import from_peft, to_peft

    to_peft(adapter, tmp_path / "theirs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    places = rf"{tmp_path}/elsewhere/models/gone.*{tmp_path}/%s/models/gone"
    with pytest.raises(UserError, match=places % "adapter" + ".*paddle-llm export BASE --adapter"):
        open_source(named(adapter, "models/gone"))
    with pytest.raises(UserError, match=places % "theirs" + ".*--base"):
        from_peft(named(tmp_path / "theirs", "models/gone", "base_model_name_or_path"), tmp_path / "back")


def test_the_base_is_stored_by_its_absolute_path(adapter, tmp_path, monkeypatch):
    from paddle_llm.config.layout import Layout
    from paddle_llm.peft.save import load_adapter, save_adapter
    from tests.helpers.convert import from_peft, to_peft

    monkeypatch.chdir(tmp_path)
    model = load_adapter(network_of(tmp_path / "base", "float32"), adapter, Layout())
    for base, stored in (("base", str(tmp_path / "base")), ("facebook/llama-7b", "facebook/llama-7b"), ("", "")):
        save_adapter(model, Layout(), tmp_path / "saved", base=base)
        assert written(tmp_path / "saved") == stored
    to_peft(adapter, tmp_path / "theirs", base=Path("base"))
    assert written(tmp_path / "theirs", "base_model_name_or_path") == str(tmp_path / "base")
    from_peft(tmp_path / "theirs", tmp_path / "back", base=Path("base"))
    assert written(tmp_path / "back") == str(tmp_path / "base")


def test_another_base_than_the_adapters_is_reported(adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    named(adapter, "../base")
    report_other_base(adapter, tmp_path / "base")
    assert "was trained with base model" not in capsys.readouterr().err
    report_other_base(adapter, tmp_path / "other")
    assert "Only the shapes of the weights are compared; the result may be wrong" in capsys.readouterr().err


def test_an_invalid_adapter_config_is_reported_with_its_position(tmp_path):
    (tmp_path / CONFIG).write_text('{\n "method": {},,\n}')
    with pytest.raises(UserError, match=r"adapter_config\.json is not valid JSON: line 2, column 15"):
        read_adapter_config(tmp_path)
    (tmp_path / CONFIG).write_text("[]")
    with pytest.raises(UserError, match="must contain a JSON object, not a list"):
        read_adapter_config(tmp_path)


def test_an_adapter_without_adapter_config_is_refused(tmp_path):
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(
        UserError, match="is an incomplete adapter: it has adapter_model.safetensors but no adapter_config.json"
    ):
        locate_adapter(tmp_path)
