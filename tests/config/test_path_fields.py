"""Paths in configs and in commands: which values are paths, and that all of them are expanded alike."""

from __future__ import annotations

import json
import re

import click
import pytest

from paddle_llm.cli import main as cli
from paddle_llm.cli.path_option import PathOption
from paddle_llm.config.parsing.values import PATH_FIELDS, kind_of, parse
from paddle_llm.config.reader import resolve
from paddle_llm.config.run_config import FIELD_NAMES, RunConfig
from paddle_llm.core.errors import ConfigError, UserError

# Text that is not a path. List a new text field or option here, or declare it as a path.
_WORDS = {
    *("model_type", "split", "device", "run_name", "metric_for_best_model"),
    "chat_template_date",
    *("sharding", "tensor_parallel_config", "pipeline_parallel_config", "sharding_parallel_config"),
}
_WORDS_OF_COMMANDS = {
    *("text_key", "data_format", "name", "author", "language", "prompts", "system", "max_shard_size", "engines"),
    *("host", "words", "chat_template_date", "gpus", "master", "weights", "served_model_names", "api_key"),
}
_LOOKS_LIKE_A_PATH = re.compile(r"(_dir|_path|_file|_folder|_cache|_checkpoint|_templates?|^output|^input)$")


def test_every_text_field_is_declared_as_a_path_or_listed_as_words():
    texts = {name for name in FIELD_NAMES if kind_of(name).base is str and not kind_of(name).choices}
    assert texts - PATH_FIELDS.keys() == _WORDS
    named = {
        name
        for name in FIELD_NAMES
        if _LOOKS_LIKE_A_PATH.search(name) and kind_of(name).base is str and not kind_of(name).choices
    }
    assert named <= PATH_FIELDS.keys()


def _parameters(command: click.Command, name: str = "paddle-llm"):
    if not isinstance(command, click.Group):
        yield from ((name, parameter) for parameter in command.params)
        return
    context = click.Context(command)
    for word in command.list_commands(context):
        yield from _parameters(command.get_command(context, word), f"{name} {word}")


def test_every_text_option_of_a_command_is_a_path_or_listed_as_words():
    for name, parameter in _parameters(cli.paddle_llm):
        plain = parameter.type.name in ("text", "path") and not isinstance(parameter.type, PathOption)
        assert not plain or parameter.name in _WORDS_OF_COMMANDS, f"{name}: {parameter.opts}"


@pytest.mark.parametrize("name", PATH_FIELDS)
def test_every_path_field_is_expanded(name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("DATA", "/data")
    assert parse(name, "~/x") == "/home/somebody/x"
    assert parse(name, "${DATA}/x") == "/data/x"
    if PATH_FIELDS[name] == "blend":
        assert parse(name, [0.3, "~/a", "0.7", "$DATA/b"]) == "0.3 /home/somebody/a 0.7 /data/b"


def test_expanded_paths_are_reported_once_and_undefined_variables_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    config = {
        "model_name_or_path": "facebook/llama-7b",
        "do_train": True,
        "max_steps": 1,
        "output_dir": "$HOME/out",
        "input_dir": "~/corpus",
        "report_to": "none",
    }
    (tmp_path / "c.json").write_text(json.dumps(config))
    argv = ["$HOME/c.json", "--data_cache=~/cache"]
    found = resolve(argv, world_size=1, device="cpu")
    assert found.config.output_dir == f"{tmp_path}/out"
    assert [line for line in found.notices if "is read as" in line] == [
        f'"output_dir" in $HOME/c.json = $HOME/out is read as {tmp_path}/out.',
        f'"input_dir" in $HOME/c.json = ~/corpus is read as {tmp_path}/corpus.',
        f"--data_cache = ~/cache is read as {tmp_path}/cache.",
    ]
    with pytest.raises(ConfigError) as refused:
        resolve([*argv, "--output_dir", "$NO_SUCH_VARIABLE/out"], world_size=1, device="cpu")
    assert refused.value.problems == [
        "--output_dir = $NO_SUCH_VARIABLE/out: the environment variable NO_SUCH_VARIABLE is not defined. "
        "Export it, or write the full path."
    ]
    assert not list(tmp_path.glob("*HOME*"))


def test_a_path_of_a_command_is_expanded_and_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    option = click.Option(["--tokenizer"], type=PathOption(as_path=True))
    assert option.type.convert("~/tok", option, None) == tmp_path / "tok"
    assert capsys.readouterr().err == f"--tokenizer ~/tok is read as {tmp_path}/tok.\n"
    with pytest.raises(UserError, match="--tokenizer .NO_SUCH_VARIABLE: the environment variable NO_SUCH_VARIABLE"):
        option.type.convert("$NO_SUCH_VARIABLE", option, None)


def test_no_default_contains_what_would_be_expanded():
    assert not [name for name in PATH_FIELDS if "$" in str(RunConfig.model_fields[name].default)]
