"""The published JSON Schema is current and valid, and accepts what the reader accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from paddle_llm.config.help import SCHEMAS
from paddle_llm.config.run_config import FIELD_NAMES, fields_of
from paddle_llm.config.schema import build_schema, schema_text

ROOT = Path(__file__).resolve().parents[2]
VALIDATOR = Draft202012Validator(build_schema())
FINETUNE_VALIDATOR = Draft202012Validator(build_schema("finetune"))


@pytest.mark.parametrize("entry", SCHEMAS)
def test_the_committed_schemas_are_current(entry: str) -> None:
    assert (ROOT / SCHEMAS[entry]).read_text() == schema_text(entry), "run: python -m paddle_llm.config.schema"


@pytest.mark.parametrize("entry", SCHEMAS)
def test_the_schema_is_valid_and_has_every_field(entry: str) -> None:
    Draft202012Validator.check_schema(build_schema(entry))
    properties = build_schema(entry)["properties"]
    assert set(fields_of(entry)) <= set(properties)
    assert not (set(FIELD_NAMES) - set(fields_of(entry))) & set(properties)
    assert all("description" in properties[name] for name in properties)


@pytest.mark.parametrize(
    "config",
    [
        {"$schema": "../schema.json", "max_steps": 5, "bf16": True, "learning_rate": 1e-5, "sharding": "stage1"},
        {"bf16": 1, "report_to": "visualdl", "no_recompute_layers": [1], "seed": None},
        {"report_to": ["visualdl", "wandb"], "sharding_degree": 4, "to_static": False, "initializer_range": 0.02},
    ],
)
def test_the_schema_accepts_valid_configs(config: dict[str, Any]) -> None:
    assert list(VALIDATOR.iter_errors(config)) == []


@pytest.mark.parametrize(
    "config",
    [
        {"learing_rate": 1},
        {"max_steps": "many"},
        {"lr_scheduler_type": "cosin"},
        {"learning_rate": 0},
        {"to_static": True},
        {"lora": True},
        [],
    ],
)
def test_the_schema_refuses_invalid_configs(config: Any) -> None:
    assert list(VALIDATOR.iter_errors(config))


def test_the_schema_of_fine_tuning_has_its_own_fields() -> None:
    known = {"lora": True, "r": 8, "lora_target_modules": ["q_proj"], "zero_padding": 1, "vera": False}
    assert list(FINETUNE_VALIDATOR.iter_errors(known)) == []
    for wrong in ({"lora_rnk": 8}, {"vera": True}, {"input_dir": "data"}, {"loss_on": "first"}):
        assert list(FINETUNE_VALIDATOR.iter_errors(wrong))


def test_old_names_are_deprecated() -> None:
    properties = json.loads(schema_text())["properties"]
    assert properties["sharding_degree"]["deprecated"] is True
    assert "sharding_parallel_degree" in properties["sharding_degree"]["description"]
    assert "deprecated" not in properties["sharding"]
