"""The recipes that come with the package, and the commands that list, show and copy them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from paddle_llm.cli.main import paddle_llm
from paddle_llm.config.local_files.model_folder import find_model_folder
from paddle_llm.config.reader import resolve
from paddle_llm.config.recipes import all_recipes, find_recipe, recipes_folder
from paddle_llm.core.errors import UserError

ROOT = Path(__file__).parents[2]


def run(*words: str):
    return CliRunner().invoke(paddle_llm, ["recipes", *words])


def test_every_file_of_configs_is_a_recipe():
    folder = ROOT / "configs"
    files = {path for path in folder.rglob("*.json") if path.parent.name not in ("configs",)} | set(
        folder.glob("*.json")
    )
    assert {recipe.path for recipe in all_recipes()} == files
    assert recipes_folder() == folder


@pytest.mark.parametrize(
    "name",
    [
        "llama_2_7b_lora",
        "finetune/llama_2_7b_lora",
        "finetune/llama_2_7b_lora.json",
        "configs/finetune/llama_2_7b_lora.json",
    ],
)
def test_a_recipe_is_found_by_short_and_full_name(name):
    assert find_recipe(name).name == "finetune/llama_2_7b_lora"


def test_mistyped_and_ambiguous_names(tmp_path):
    with pytest.raises(UserError, match=r"llama_2_7b_lor is not a recipe. Did you mean llama_2_7b_lora\?"):
        find_recipe("llama_2_7b_lor")
    assert run("show", "nothing-like-it").exit_code == 2
    assert run("list", "nothing-like-it").exit_code == 2


def test_show_prints_the_file():
    shown = run("show", "llama_7b_tp4_pp2")
    assert json.loads(shown.stdout) == json.loads((ROOT / "configs/pretrain/llama_7b_tp4_pp2.json").read_text())


def test_list_shows_model_method_and_processes():
    lines = {line.split()[0]: line.split() for line in run("list", "llama_2").stdout.splitlines()}
    assert lines["pretrain/llama_2_70b_tp8_pp4_sharding2_stage2"][1:] == ["llama-2-70b", "64"]
    assert lines["finetune/llama_2_7b_prefix"][1:] == ["meta-llama/Llama-2-7b", "prefix", "1"]
    assert "pretrain/bloom_7b1_sharding8_stage2" not in lines


def test_list_selects_by_processes():
    lines = run("list", "--processes", "64").stdout.splitlines()[1:]
    assert lines and all(line.split()[-1] == "64" for line in lines)
    done = run("list", "lora", "--processes", "63")
    assert done.exit_code == 2 and "No recipe has lora in its name and 63 processes." in done.stderr


def test_a_copy_is_read_in_a_folder_without_configs(tmp_path, monkeypatch):
    """The shape that it names is found in the package, also by a name with a typing error in it."""
    monkeypatch.chdir(tmp_path)
    assert run("copy", "llama_7b_tp4_pp2").exit_code == 0
    (tmp_path / "data.bin").touch(), (tmp_path / "data.idx").touch()
    flags = ["--tokenizer_name_or_path", str(ROOT / "configs/models/llama-7b"), "--input_dir", "data"]
    resolved = resolve(["llama_7b_tp4_pp2.json", *flags], world_size=8, device="gpu")
    assert resolved.config.model_name_or_path == str(ROOT / "configs/models/llama-7b")
    assert resolved.facts is not None and resolved.facts.num_hidden_layers == 32
    with pytest.raises(UserError, match="no such folder exists"):
        find_model_folder("configs/models/llama-7x")


def test_copy_replaces_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "mine.json"
    target.write_text("kept")
    result = run("copy", "llama_7b_tp4_pp2", "mine.json")
    assert result.exit_code == 2 and "exists already" in result.stderr and target.read_text() == "kept"


def test_the_shape_of_a_model_is_copied_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("copy", "models/llama-7b", "shape").exit_code == 0
    assert json.loads((tmp_path / "shape" / "config.json").read_text())["hidden_size"] == 4096


def test_an_existing_folder_gets_the_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert run("copy", "llama_7b_tp4_pp2", ".").exit_code == 0
    assert run("copy", "schema", "mine").exit_code == 0
    assert run("copy", "models/llama-7b", "mine").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama_7b_tp4_pp2.json", "mine"]
    assert (tmp_path / "mine/schema.json").is_file() and (tmp_path / "mine/llama-7b/config.json").is_file()
    again = run("copy", "schema", "mine/")
    assert again.exit_code == 2 and "mine/schema.json exists already" in again.stderr


def test_the_names_of_list_are_found_in_any_case():
    assert run("list", "LLaMA_2", "13b").stdout == run("list", "llama_2", "13B").stdout != run("list").stdout


def test_the_next_command_starts_the_processes_of_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("copy", "quickstart", "a.json").stderr.endswith("paddle-llm pretrain a.json --nproc_per_node 8\n")
    assert run("copy", "llama_2_7b_lora", "b.json").stderr.endswith("paddle-llm finetune b.json\n")
    assert "--nnodes 8 --master HOST:PORT" in run("copy", "llama_2_70b_tp8_pp4_sharding2_stage2", "c.json").stderr
