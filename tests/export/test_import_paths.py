"""Every import path that the documentation has shown keeps working."""

from __future__ import annotations

import importlib

import pytest

CURRENT = [
    ("paddle_llm", "FinetuneTrainer"),
    ("paddle_llm", "PretrainTrainer"),
    ("paddle_llm", "finetune"),
    ("paddle_llm", "generate"),
    ("paddle_llm", "pretrain"),
    ("paddle_llm.export", "export"),
    ("paddle_llm.export", "Exported"),
    ("paddle_llm.export", "Options"),
    ("paddle_llm.export", "size_in_bytes"),
    ("paddle_llm.generation.static_network", "StaticModel"),
]


@pytest.mark.parametrize(("module", "name"), CURRENT)
def test_a_public_name_is_importable(module, name, recwarn):
    assert callable(getattr(importlib.import_module(module), name))
    assert not [warning for warning in recwarn if "paddle_llm" in str(warning.message)]


@pytest.mark.parametrize("name", ["export", "Exported", "Options", "size_in_bytes"])
def test_a_moved_name_is_importable_with_a_deprecation_warning(name):
    module = importlib.import_module("paddle_llm.export.command")
    with pytest.warns(DeprecationWarning, match=f"Use `from paddle_llm.export import {name}`"):
        moved = getattr(module, name)
    assert moved is getattr(importlib.import_module("paddle_llm.export"), name)


def test_an_unknown_name_is_an_attribute_error():
    for module in ("paddle_llm", "paddle_llm.export", "paddle_llm.export.command"):
        with pytest.raises(AttributeError, match="unheard"):
            importlib.import_module(module).unheard  # noqa: B018
