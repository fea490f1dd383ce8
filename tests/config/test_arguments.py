"""A command line and a JSON file are split into names and raw values, before these are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_llm.config.parsing.arguments import BARE, Arguments, read_arguments

KNOWN = {"logging_steps", "dataloader_num_workers", "fp16", "fp16_opt_level", "report_to"}


def read(*argv: str) -> Arguments:
    return read_arguments(list(argv), KNOWN)


def as_dict(arguments: Arguments) -> dict[str, object]:
    return {one.name: one.raw for one in arguments.given}


def test_flags_take_values_in_every_form() -> None:
    found = read("--a", "1", "--b=2", "--c", "--d", "x", "y", "--e", "-1", "--f=", "--g=k=v")
    assert as_dict(found) == {"a": "1", "b": "2", "c": BARE, "d": ["x", "y"], "e": "-1", "f": "", "g": "k=v"}
    assert found.problems == [] and found.notices == []
    assert {one.origin for one in found.given} == {"flag"}


@pytest.mark.parametrize(
    ("argv", "hint", "given"),
    [
        (
            ["--logging_steps", "20--dataloader_num_workers", "1"],
            "20--dataloader_num_workers: missing space. Write 20 --dataloader_num_workers",
            {"logging_steps": "20", "dataloader_num_workers": "1"},
        ),
        (
            ["--fp16", "0\\--fp16_opt_level", "O2"],  # a backslash that is not at the end of its line
            "Write 0 --fp16_opt_level",
            {"fp16": "0", "fp16_opt_level": "O2"},
        ),
        (["--logging_steps=20--fp16"], "Write --logging_steps=20 --fp16", {"logging_steps": "20", "fp16": BARE}),
    ],
)
def test_two_flags_without_a_space_between_them_are_split(argv: list[str], hint: str, given: dict[str, object]) -> None:
    found = read(*argv)
    assert len(found.problems) == 1 and hint in found.problems[0]
    assert as_dict(found) == given


def test_a_path_with_dashes_is_not_split() -> None:
    assert read("--output_dir", "runs/a--b", "--x", "a--b-c").problems == []


def test_the_last_value_of_a_repeated_flag_is_used_and_reported() -> None:
    found = read("--max_steps", "1", "--max_steps", "2", "--do_train", "--do_train")
    assert as_dict(found) == {"max_steps": "2", "do_train": BARE}
    assert found.notices == ["--max_steps is given twice; using the last value: 2."]


def test_stray_words_and_single_dashes_are_refused() -> None:
    assert read("-max_steps", "2").problems == ["-max_steps: a flag needs two dashes. Write --max_steps"]


def test_a_file_is_read_before_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('\ufeff{"$schema": "../schema.json", "max_steps": 5, "bf16": true, "x": null}', encoding="utf-8")
    found = read(str(path), "--max_steps", "7")
    assert [(one.name, one.raw, one.origin) for one in found.given] == [
        ("max_steps", 5, f"file {path}"),
        ("bf16", True, f"file {path}"),
        ("x", None, f"file {path}"),
        ("max_steps", "7", "flag"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1, column 2"),
        ('{"a": 1,}', "not valid JSON"),
        ("[]", "contains a list. Write one JSON object of keys and values"),
        ("null", "contains a null"),
        ('{"a": 1, "b": 2, "a": 1}', 'duplicate key "a"'),
    ],
)
def test_an_invalid_file_is_one_problem(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    problems = read(str(path)).problems
    assert len(problems) == 1 and message in problems[0] and str(path) in problems[0]


def test_a_missing_file_and_a_folder_are_problems(tmp_path: Path) -> None:
    assert "nowhere.json does not exist" in read("nowhere.json").problems[0]
    assert "is a folder" in read(str(tmp_path)).problems[0]
    (tmp_path / "weights.json").write_bytes(bytes(range(256)))
    assert "is not text" in read(str(tmp_path / "weights.json")).problems[0]
