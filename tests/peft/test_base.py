"""Over which model an adapter stands: found from wherever one calls, and kept by a name that stays true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.peft.base import adapter_folder, read_described
from paddle_llm.peft.method import Method
from tests.export.test_merged import base_folder, network_of, trained_adapter

CONFIG = "adapter_config.json"


@pytest.fixture
def adapter(tmp_path) -> Path:
    """tmp_path/base and an adapter over it in tmp_path/adapter."""
    base = base_folder(tmp_path / "base", "llama", num_hidden_layers=1)
    return trained_adapter(tmp_path / "adapter", base, Method("lora", rank=2, targets=("q_proj",)))


def named(adapter: Path, base: str, key: str = "base") -> Path:
    described = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(described | {key: base}))
    return adapter


def written(adapter: Path, key: str = "base") -> str:
    return json.loads((adapter / CONFIG).read_text())[key]


def test_a_relative_base_is_found_from_here_and_from_the_adapters_folder(adapter, tmp_path, monkeypatch):
    from paddle_llm.export.source.source import open_source
    from paddle_llm.peft.hugging_face.convert import to_peft

    (tmp_path / "some" / "where").mkdir(parents=True)
    for place, base in ((tmp_path, "base"), (tmp_path / "some" / "where", "../base")):
        monkeypatch.chdir(place)
        source = open_source(named(adapter, base))
        assert source.folder.resolve() == tmp_path / "base" and source.adapter == adapter
        to_peft(adapter, tmp_path / f"as {base.replace('/', ' ')}")
        assert written(tmp_path / f"as {base.replace('/', ' ')}", "base_model_name_or_path") == str(tmp_path / "base")


def test_the_one_from_here_is_taken_where_both_are(adapter, tmp_path, monkeypatch):
    """What an adapter's path has always meant."""
    from paddle_llm.export.source.source import open_source

    base_folder(tmp_path / "here" / "models", "llama", num_hidden_layers=1)
    base_folder(adapter / "models", "llama", num_hidden_layers=1)
    monkeypatch.chdir(tmp_path / "here")
    assert open_source(named(adapter, "models")).folder.resolve() == tmp_path / "here" / "models"


def test_a_base_that_is_in_neither_place_names_both_and_what_to_do(adapter, tmp_path, monkeypatch):
    from paddle_llm.export.source.source import open_source
    from paddle_llm.peft.hugging_face.convert import from_peft, to_peft

    to_peft(adapter, tmp_path / "theirs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    places = rf"{tmp_path}/elsewhere/models/gone.*{tmp_path}/%s/models/gone"
    with pytest.raises(UserError, match=places % "adapter" + ".*paddle-llm export BASE --adapter"):
        open_source(named(adapter, "models/gone"))
    with pytest.raises(UserError, match=places % "theirs" + ".*--base"):
        from_peft(named(tmp_path / "theirs", "models/gone", "base_model_name_or_path"), tmp_path / "back")


def test_what_is_saved_names_its_base_wherever_one_calls_from(adapter, tmp_path, monkeypatch):
    from paddle_llm.config.layout import Layout
    from paddle_llm.peft.hugging_face.convert import from_peft, to_peft
    from paddle_llm.peft.save import load_adapter, save_adapter

    monkeypatch.chdir(tmp_path)
    model = load_adapter(network_of(tmp_path / "base", "float32"), adapter, Layout())
    for base, stored in (("base", str(tmp_path / "base")), ("facebook/llama-7b", "facebook/llama-7b"), ("", "")):
        save_adapter(model, Layout(), tmp_path / "saved", base=base)
        assert written(tmp_path / "saved") == stored
    to_peft(adapter, tmp_path / "theirs", base=Path("base"))
    assert written(tmp_path / "theirs", "base_model_name_or_path") == str(tmp_path / "base")
    from_peft(tmp_path / "theirs", tmp_path / "back", base=Path("base"))
    assert written(tmp_path / "back") == str(tmp_path / "base")


def test_generating_over_another_base_is_told(adapter, tmp_path, monkeypatch, capsys):
    from paddle_llm.config.layout import Layout
    from paddle_llm.generation import network

    monkeypatch.chdir(tmp_path)
    named(adapter, "../base")
    network._put_over(
        network_of(tmp_path / "base", "float32"), adapter, tmp_path / "base", Layout(), allow_pickle=False
    )
    assert "was trained over" not in capsys.readouterr().err
    network._put_over(
        network_of(tmp_path / "base", "float32"), adapter, tmp_path / "other", Layout(), allow_pickle=False
    )
    assert "whose weights may be others" in capsys.readouterr().err


def test_a_description_that_cannot_be_read_is_told_by_its_place(tmp_path):
    (tmp_path / CONFIG).write_text('{\n "method": {},,\n}')
    with pytest.raises(UserError, match=r"adapter_config\.json is not valid JSON: line 2, column 15"):
        read_described(tmp_path)
    (tmp_path / CONFIG).write_text("[]")
    with pytest.raises(UserError, match="must contain a JSON object, not a list"):
        read_described(tmp_path)


def test_an_adapter_without_its_description_is_told(tmp_path):
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(UserError, match="not complete"):
        adapter_folder(tmp_path)
