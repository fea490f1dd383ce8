"""Old names: every row of the tables, its message, and that nothing is dropped silently."""

from __future__ import annotations

import pytest

from paddle_llm.config.legacy.kinds import Ignored, Refused, Renamed, is_neutral
from paddle_llm.config.legacy.paddlenlp import FINETUNE_NAMES, OLD_NAMES, UNSUPPORTED_NAMES
from paddle_llm.config.legacy.translate import Translated, names_of, translate
from paddle_llm.config.parsing.arguments import BARE, FLAG, RawValue
from paddle_llm.config.run_config import FIELD_NAMES, FINETUNE_ONLY, PRETRAIN_ONLY, fields_of

ALL = names_of("finetune")


def flag(name: str, raw: object) -> RawValue:
    return RawValue(name, raw, FLAG)


def pretrain(*given: RawValue) -> Translated:
    return translate(list(given), "pretrain", frozenset(fields_of("pretrain")))


def finetune(*given: RawValue) -> Translated:
    return translate(list(given), "finetune", frozenset(fields_of("finetune")))


def test_the_tables_do_not_overlap() -> None:
    tables = [set(FIELD_NAMES), set(OLD_NAMES), set(UNSUPPORTED_NAMES), set(FINETUNE_NAMES)]
    assert sum(map(len, tables)) == len(set.union(*tables))


def test_every_new_name_exists() -> None:
    for old, rule in ALL.items():
        if isinstance(rule, Renamed):
            assert rule.new in (fields_of("finetune") if old in FINETUNE_NAMES else FIELD_NAMES), old


@pytest.mark.parametrize(
    ("old", "raw", "new", "value"),
    [
        ("sharding_degree", "4", "sharding_parallel_degree", "4"),
        ("no_cuda", BARE, "device", "cpu"),
        ("no_cuda", "true", "device", "cpu"),
        ("max_evaluate_steps", 20, "eval_iters", 20),
    ],
)
def test_old_names_are_translated_for_pretraining(old: str, raw: object, new: str, value: object) -> None:
    found = pretrain(flag(old, raw))
    assert [(one.name, one.raw, one.old) for one in found.given] == [(new, value, old)]
    assert found.notices == [f"--{old} {raw} is read as --{new} {value}"]
    assert found.problems == []


def test_the_asynchronous_save_of_paddlenlp_is_translated() -> None:
    found = pretrain(flag("use_async_save", "1"))
    assert [(one.name, one.raw, one.old) for one in found.given] == [("async_save", True, "use_async_save")]
    assert found.notices == ["--use_async_save 1 is read as --async_save true"] and found.problems == []


@pytest.mark.parametrize(
    ("old", "raw"), [("no_cuda", "false"), ("max_evaluate_steps", "-1"), ("use_async_save", "false")]
)
def test_old_values_that_request_the_default_are_dropped(old: str, raw: object) -> None:
    found = pretrain(flag(old, raw))
    assert (found.given, found.notices, found.problems) == ([], [], [])


@pytest.mark.parametrize(
    ("old", "raw", "new"),
    [
        ("r", "8", "lora_rank"),
        ("intokens", "1", "zero_padding"),
        ("task_name_or_path", "./data", "dataset_name_or_path"),
        ("task_path", "./data", "dataset_name_or_path"),
        ("dataset_path", "./data", "dataset_name_or_path"),
        ("data_name", "bellegroup", "dataset_name_or_path"),
        ("do_generation", "0", "eval_with_do_generation"),
        ("task_name", "./data", "dataset_name_or_path"),
        ("target_modules", "q_proj", "lora_target_modules"),
    ],
)
def test_some_names_are_translated_for_fine_tuning_only(old: str, raw: str, new: str) -> None:
    found = finetune(flag(old, raw))
    assert [(one.name, one.raw) for one in found.given] == [(new, raw)]
    assert found.notices == [f"--{old} {raw} is read as --{new} {raw}"]
    problems = pretrain(flag(old, raw)).problems
    assert problems == [f"--{old} belongs to finetune_generation.py, not to run_pretrain.py. Remove it."]


def test_tgt_length_becomes_the_sum() -> None:
    found = finetune(flag("src_length", "1024"), flag("tgt_length", "160"))
    assert {one.name: one.raw for one in found.given} == {"src_length": "1024", "max_length": 1184}
    assert found.notices == ["--tgt_length 160 is read as --max_length 1184"]
    assert (
        "is added to --src_length, which is missing. Give --src_length, or --max_length instead."
        in finetune(flag("tgt_length", "160")).problems[0]
    )
    assert "is not a whole number" in finetune(flag("src_length", "1"), flag("tgt_length", "x")).problems[0]


def test_a_file_is_quoted_as_json_and_named() -> None:
    found = pretrain(RawValue("sharding_degree", 4, "file old.json"))
    assert found.notices == ['"sharding_degree" in old.json: 4 is read as "sharding_parallel_degree": 4']


@pytest.mark.parametrize("name", sorted({*FINETUNE_NAMES, *FINETUNE_ONLY}))
def test_names_of_fine_tuning_are_refused_in_pretraining(name: str) -> None:
    assert "belongs to finetune_generation.py" in pretrain(flag(name, "1")).problems[0]


@pytest.mark.parametrize("name", sorted(PRETRAIN_ONLY))
def test_names_of_pretraining_are_refused_in_fine_tuning(name: str) -> None:
    problems = finetune(flag(name, "1")).problems
    assert problems == [
        f"--{name} belongs to run_pretrain.py, not to finetune_generation.py. Remove it: {PRETRAIN_ONLY[name]}."
    ]


def test_old_names_of_pretraining_are_refused_in_fine_tuning() -> None:
    assert "--max_evaluate_steps belongs to run_pretrain.py" in finetune(flag("max_evaluate_steps", "5")).problems[0]
    found = finetune(flag("max_evaluate_steps", "-1"))
    assert (found.given, found.notices, found.problems) == ([], [], [])


@pytest.mark.parametrize(("raw", "value"), [(BARE, [True]), ("1", [True]), ("0", []), (None, [])])
def test_greedy_packing_is_translated_to_packing(raw: object, value: list[object]) -> None:
    assert [one.raw for one in finetune(flag("greedy_zero_padding", raw)).given] == value


@pytest.mark.parametrize("name", sorted(n for n, r in ALL.items() if isinstance(r, Ignored)))
def test_names_without_effect_are_a_notice(name: str) -> None:
    found = finetune(flag(name, "some value"))
    assert found.problems == [] and found.given == []
    assert len(found.notices) == 1 and f"--{name} has no effect: " in found.notices[0]


@pytest.mark.parametrize("name", sorted(n for n, r in ALL.items() if isinstance(r, Refused)))
def test_refused_names_are_an_error_with_a_reason(name: str) -> None:
    found = finetune(flag(name, "some value"))
    assert found.notices == [] and found.given == []
    assert len(found.problems) == 1 and f"--{name} = some value is not supported: " in found.problems[0]


@pytest.mark.parametrize("name", sorted(ALL))
def test_neutral_values_and_null_pass_silently(name: str) -> None:
    rule = ALL[name]
    if isinstance(rule, Renamed):
        return
    for value in (*rule.neutral, None):
        found = finetune(flag(name, value))
        assert (found.given, found.notices, found.problems) == ([], [], []), value


@pytest.mark.parametrize(
    ("raw", "neutral", "expected"),
    [
        ("false", (False,), True),
        ("0", (False,), True),
        (0, (False,), True),
        ("False", (False,), True),
        (True, (False,), False),
        ("-1", (-1, 0, 1), True),
        (2, (-1, 0, 1), False),
        ("dp", ("dp",), True),
        ("", ("",), True),
        (None, (), True),
        ("x", (), False),
    ],
)
def test_neutral_values_are_recognised(raw: object, neutral: tuple[object, ...], expected: bool) -> None:
    assert is_neutral(raw, neutral) is expected


def test_unknown_names_and_fields_are_passed_on() -> None:
    given = [flag("no_such_thing", "1"), flag("max_steps", "2")]
    assert pretrain(*given).given == given
