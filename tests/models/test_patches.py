"""Corrections of PaddleNLP: each attribute is replaced once, from one file, with a reason."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from paddle_llm.core import upstream
from paddle_llm.core.upstream import REPLACEMENTS, replace
from paddle_llm.families import FAMILIES
from paddle_llm.models import patches
from paddle_llm.models.patches import apply
from tests.helpers.forked import run_forked

FOLDER = Path(patches.__file__).parent


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "REPLACEMENTS", {})


def test_a_second_replacement_of_an_attribute_is_refused(empty: None) -> None:
    owner = type("Owner", (), {"value": 1})
    replace(owner, "value", 2, "It is wrong.")
    with pytest.raises(
        RuntimeError, match="value is replaced by test_patches.py and by test_patches.py. Compose the two functions"
    ):
        replace(owner, "value", 3, "It is wrong.")
    assert owner.value == 2


def test_every_replacement_is_in_effect_and_has_a_reason() -> None:
    for family in FAMILIES:
        apply(family, "cpu")
    replaced = {target: one for target, one in REPLACEMENTS.items() if one.file.startswith("models/patches/")}
    assert len(replaced) > 40
    for target, one in replaced.items():
        assert one.why.endswith(".") and (FOLDER.parents[1] / one.file).is_file()
        module, path = target.split(":")
        owner = importlib.import_module(module)
        *classes, name = path.split(".")
        for part in classes:
            owner = vars(owner)[part]
        if name != "__getattr__":  # the only one that is removed
            assert name in vars(owner), target


def test_applying_twice_changes_nothing() -> None:
    for _ in range(2):
        for family in FAMILIES:
            apply(family, "cpu")


def test_the_page_has_the_table() -> None:
    """A separate process, because the table also lists what the gloo backend replaces."""
    root = Path(__file__).parents[2]
    done = run_forked("-m", "paddle_llm.models.patches", cwd=root)
    assert done.returncode == 0, done.stderr
    page = root / "docs" / "concepts" / "upstream_patches.md"
    assert page.read_text(encoding="utf-8").endswith(f"\n\n{done.stdout}")


def test_attributes_are_replaced_through_the_register_only() -> None:
    """Only core/upstream.py sets attributes of classes or modules; other assignments are to `self` or to one network's layers."""
    owners = {"self", "ctx", "layer", "linear", "attention", "outputs", "part", "mask", "log"}
    for file in sorted(FOLDER.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in [one for one in targets if isinstance(one, ast.Attribute)]:
                root = target.value
                while isinstance(root, ast.Attribute):
                    root = root.value
                assert isinstance(root, ast.Name) and root.id in owners, f"{file.name}:{node.lineno}"


def test_corrections_of_a_network_depend_on_its_family() -> None:
    patches.apply_to_network("qwen2", SimpleNamespace())  # it has no such corrections
