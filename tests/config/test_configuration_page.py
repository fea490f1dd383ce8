"""docs/reference/configuration_files.md: the reader understands its commands, and its keys are those of the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paddle_llm.cli import main as cli
from paddle_llm.config.legacy.other_trainers import COUNTERPARTS
from paddle_llm.config.reader import _HINTS, resolve
from paddle_llm.config.run_config import FIELD_NAMES
from paddle_llm.core.errors import ConfigError
from tests.helpers import doc_pages

_PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "configuration_files.md").read_text(encoding="utf-8")
_COMMANDS = doc_pages.commands("reference/configuration_files")


def test_the_page_has_commands_of_both_kinds():
    assert {command.split()[0] for command in _COMMANDS} == {"python", "paddle-llm"}


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_is_understood(command, tmp_path):
    words = command.split()
    if words[0] == "python":
        config = tmp_path / "CONFIG.json"
        config.write_text("{}")
        with pytest.raises(ConfigError) as refused:  # only the required fields are missing
            resolve(
                [str(config), *words[3:]],
                world_size=1,
                entry="finetune" if "finetune" in words[1] else "pretrain",
                device="cpu",
            )
        assert all("missing" in line or "nothing to do" in line for line in refused.value.problems)
        return
    group = cli.paddle_llm
    command_of = group.get_command(None, words[1])
    with command_of.make_context(words[1], words[2:]) as context:
        assert context.params["input_file"] is not None


def test_every_foreign_key_and_every_flag_of_the_page_exists():
    rows = [line.split("|") for line in _PAGE.splitlines() if line.startswith("| `")]
    assert len(rows) > 10
    for row in rows:
        for key in re.findall(r"`([a-z_]+)(?::[^`]*)?`", row[1]):
            assert key in COUNTERPARTS or key in _HINTS, key
    others = {"help"}
    assert set(re.findall(r"--([a-z_]+)", _PAGE)) <= {*FIELD_NAMES, *others, "input", "output", "max_new_tokens"}
