"""--help and the tables of defaults show every field with its default."""

from __future__ import annotations

import pytest

from paddle_llm.config.help import default_text, defaults_table, finetune_table, help_text, type_text, wants_help
from paddle_llm.config.parsing.values import kind_of
from paddle_llm.config.run_config import FIELD_NAMES, fields_of


def test_help_lists_every_field_once_within_the_width() -> None:
    text = help_text(width=80)
    for name in fields_of("pretrain"):
        assert text.count(f"\n  --{name} ") == 1, name
    assert "  --learning_rate NUMBER  (default: 0.0003)" in text
    assert "python run_pretrain.py [CONFIG.json]" in text
    assert all(len(line) <= 80 for line in text.splitlines() if line.startswith("      "))


def test_help_of_fine_tuning_lists_its_fields() -> None:
    text = help_text("finetune", width=80)
    assert text.startswith("Fine-tune a language model") and "python finetune_generation.py [CONFIG.json]" in text
    assert "configs/schema_finetune.json" in text
    for name in FIELD_NAMES:
        assert text.count(f"\n  --{name} ") == (name in fields_of("finetune")), name
    assert "  --learning_rate NUMBER  (default: 2e-05)" in text
    assert "  --continue_training true|false  (default: true)" in text


def test_the_table_of_fine_tuning_shows_the_differences() -> None:
    rows = [line.split(" | ")[0] for line in finetune_table().splitlines() if line.startswith("| `--")]
    for name in set(FIELD_NAMES) - set(fields_of("pretrain")):
        assert rows.count(f"| `--{name}`") == 1, name
    assert "| `--learning_rate`, lora" in rows and "| `--continue_training`" in rows
    assert "| `--output_dir`" not in rows


def test_defaults_table_is_markdown_with_every_field() -> None:
    rows = [line for line in defaults_table().splitlines() if line.startswith("| `--")]
    assert len(rows) == len(fields_of("pretrain"))
    assert any(row.startswith("| `--logging_steps` | 10 | ") for row in rows)


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("bf16", "true|false", "false"),
        ("max_steps", "INT", "-1"),
        ("adam_epsilon", "NUMBER", "1e-08"),
        ("output_dir", "TEXT", "-"),
        ("report_to", "TEXT ...", "visualdl"),
        ("save_strategy", "no|steps|epoch", "steps"),
        ("data_seed", "INT", "-"),
    ],
)
def test_types_and_defaults_as_a_user_writes_them(name: str, kind: str, default: str) -> None:
    assert type_text(kind_of(name)) == kind
    assert default_text(name) == default


def test_requests_for_help_are_recognised() -> None:
    assert wants_help(["--help"]) and wants_help(["a.json", "-h"]) and not wants_help(["--helper"])
