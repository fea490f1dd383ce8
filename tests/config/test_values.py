"""Typed values: each kind of field accepts some values and refuses others with a message."""

from __future__ import annotations

import pytest

from paddle_llm.config.parsing.arguments import BARE
from paddle_llm.config.parsing.values import BadValue, kind_of, parse
from paddle_llm.config.run_config import FIELD_NAMES, RunConfig


@pytest.mark.parametrize("raw", [True, 1, "1", "true", "True", "TRUE", "yes", "on", " true "])
def test_true_can_be_written_in_many_ways(raw: object) -> None:
    assert parse("bf16", raw) is True


@pytest.mark.parametrize("raw", [False, 0, "0", "false", "False", "no", "off"])
def test_false_can_be_written_in_many_ways(raw: object) -> None:
    assert parse("bf16", raw) is False


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("max_steps", 10, 10),
        ("max_steps", "10", 10),
        ("max_steps", "-1", -1),
        ("max_steps", 4.0, 4),
        ("max_steps", "1e4", 10000),
        ("max_steps", "9007199254740993", 9007199254740993),  # 2**53 + 1 is not exact as a float
        ("learning_rate", "1e-5", 1e-5),
        ("learning_rate", 1, 1.0),
        ("learning_rate", "0.00001", 1e-5),
        ("no_recompute_layers", [1, 2], [1, 2]),
        ("no_recompute_layers", ["1", "2"], [1, 2]),
        ("no_recompute_layers", "1,2", [1, 2]),
        ("no_recompute_layers", 3, [3]),
        ("report_to", "visualdl", ["visualdl"]),
        ("report_to", ["visualdl", "wandb"], ["visualdl", "wandb"]),
        ("sharding", ["stage2", "offload"], "stage2 offload"),
        ("input_dir", ["0.3", "/a/x", "0.7", "/b/y"], "0.3 /a/x 0.7 /b/y"),
        ("lr_scheduler_type", "linear", "linear"),
        ("split", "949,50,1", "949,50,1"),
    ],
)
def test_a_valid_value_is_converted(name: str, raw: object, value: object) -> None:
    parsed = parse(name, raw)
    assert parsed == value
    assert type(parsed) is type(value)


def test_home_is_expanded_in_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parse("output_dir", "~/runs/a") == "/home/somebody/runs/a"
    assert parse("run_name", "~/runs") == "~/runs"


@pytest.mark.parametrize("raw", [None, "None", "null"])
@pytest.mark.parametrize("name", FIELD_NAMES)
def test_null_is_the_default_and_never_the_word_none(name: str, raw: object) -> None:
    assert parse(name, raw) == RunConfig.model_fields[name].get_default(call_default_factory=True)


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("max_steps", "4.5", "a whole number"),
        ("max_steps", 4.5, "a whole number"),
        ("max_steps", True, "a whole number"),
        ("max_steps", "", "a whole number"),
        ("max_steps", [1, 2], "one value"),
        ("learning_rate", "fast", "a number"),
        ("learning_rate", "nan", "finite"),
        ("learning_rate", float("inf"), "finite"),
        ("learning_rate", False, "a number"),
        ("bf16", "maybe", "true or false"),
        ("bf16", 2, "true or false"),
        ("bf16", 1.0, "true or false"),
        ("no_recompute_layers", "one", "a list of whole numbers"),
        ("no_recompute_layers", {"a": 1}, "a list of whole numbers"),
        ("output_dir", 5, "text"),
        ("output_dir", {"a": 1}, "text"),
        ("lr_scheduler_type", "cosin", "one of linear, cosine"),
    ],
)
def test_an_invalid_value_is_refused_with_the_expected_form(name: str, raw: object, expected: str) -> None:
    with pytest.raises(BadValue, match=expected):
        parse(name, raw)


def test_every_field_has_a_kind_and_a_description() -> None:
    for name in FIELD_NAMES:
        assert str(kind_of(name))
        assert RunConfig.model_fields[name].description, name


def test_bare_flag_prints_as_true() -> None:
    assert str(BARE) == "true"
