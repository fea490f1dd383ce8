"""A missing tokenizer and an unusable output folder are reported together with all other mistakes, before Paddle is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_llm.config.reader import resolve
from paddle_llm.core.errors import ConfigError
from paddle_llm.training.launch.preflight import JOB_RULES
from tests.helpers.models.tiny import write_llama


def problems(tmp_path: Path, *flags: str) -> list[str]:
    """Return the problems of a pretraining with these flags; its corpus does not exist."""
    if not (tmp_path / "llama").exists():
        write_llama(tmp_path / "llama")
    given = ["--model_name_or_path", f"{tmp_path}/llama", "--input_dir", f"{tmp_path}/nothing", "--do_train", "1"]
    given += ["--output_dir", f"{tmp_path}/output", "--device", "cpu", "--max_seq_length", "64"]
    with pytest.raises(ConfigError) as failure:
        resolve([*given, *flags], world_size=1, further_rules=JOB_RULES)
    return failure.value.problems


def test_all_mistakes_of_one_command(tmp_path):
    (tmp_path / "file").touch()
    flags = ["--output_dir", f"{tmp_path}/file", "--learing_rate", "1", "--max_steps", "none"]
    found = problems(tmp_path, *flags)
    for text in (
        "learing_rate",
        "max_steps",
        "nothing",
        "tokenizer_name_or_path is not set",
        "is a file or a broken link",
    ):
        assert len([one for one in found if text in one]) == 1, text


def test_a_given_tokenizer_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    found = problems(tmp_path, "--tokenizer_name_or_path", f"{tmp_path}/tokenizer")
    assert [one for one in found if f"tokenizer {tmp_path}/tokenizer: the folder has no tokenizer_config.json" in one]


def test_an_occupied_folder_and_a_wrong_checkpoint(tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "thesis.doc").write_text("mine")
    assert any("is not empty (thesis.doc)" in one for one in problems(tmp_path))
    found = problems(tmp_path, "--resume_from_checkpoint", f"{tmp_path}/nowhere")
    assert any(f"{tmp_path}/nowhere is not a complete checkpoint" in one for one in found)
    assert (tmp_path / "output" / "thesis.doc").read_text() == "mine"


def test_the_checks_write_nothing_and_only_the_first_rank_makes_those_of_the_output_folder(tmp_path, monkeypatch):
    before = problems(tmp_path)
    assert not (tmp_path / "output").exists()
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    (tmp_path / "output").touch()
    assert problems(tmp_path) == before
