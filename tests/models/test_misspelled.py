"""Misspelled keys of a config.json are reported, and keys of other libraries are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.config.run_config import RunConfig
from paddle_llm.families.shape import find_family
from paddle_llm.models.build import plain_configuration
from paddle_llm.models.configuration.known_fields import unknown_fields
from paddle_llm.models.configuration.switches import apply_switches
from tests.helpers.models.networks import WRITERS

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "models").iterdir())


def configuration(folder: Path):
    facts = read_model_facts(folder)
    return plain_configuration(folder, find_family(facts), facts.raw)


def test_a_key_that_is_nearly_right_is_reported_once(tmp_path, capsys):
    WRITERS["llama"](tmp_path)
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text())
    raw.pop("rms_norm_eps", None)
    file.write_text(json.dumps(raw | {"rms_norm_epss": 1e-5, "use_of_somebody_else": 1}))
    for _ in range(2):
        assert configuration(tmp_path).rms_norm_eps == 1e-6
    line, unknown = capsys.readouterr().err.splitlines()
    assert "unknown field rms_norm_epss (did you mean rms_norm_eps?)" in line and "default rms_norm_eps = 1e-06" in line
    assert "1 field is unknown for LLaMA and not used: use_of_somebody_else" in unknown
    file.write_text(json.dumps(raw | {"rms_norm_epss": 1e-5, "rms_norm_eps": 1e-5}))
    configuration(tmp_path)
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("name", WRITERS)
def test_every_key_that_a_training_writes_is_known(name, tmp_path):
    WRITERS[name](tmp_path)
    facts = read_model_facts(tmp_path)
    family = find_family(facts)
    config = plain_configuration(tmp_path, family, facts.raw)
    apply_switches(config, RunConfig(), Layout(), family)
    read = set(vars(family.load("config_class")()))
    assert unknown_fields(family.name, config.to_dict(), read) == []


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_published_keys_are_not_reported(folder, capsys):
    configuration(folder)
    reported = capsys.readouterr().err
    assert "did you mean" not in reported and "are unknown" not in reported
