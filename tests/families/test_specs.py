"""Every family states every field, and nothing else in the product depends on the name of a family."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_llm.families import FAMILIES, spec
from paddle_llm.families.shape import family_of

PACKAGE = Path(spec.__file__).parents[1]
# Files or folders outside families/ and models/patches/ that use the name of a family as a value, and the reason.
ALLOWED = {
    "config/local_files/instruction_data.py": "names of chat templates",
    "data/chat/": "names of chat templates",
    "export/targets/gguf/": "names of llama.cpp's tokenizers",
}
DESCRIPTIONS = [value for value in vars(spec).values() if isinstance(value, type) and value.__module__ == spec.__name__]


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda one: one.__name__)
def test_no_field_has_a_default(description: type) -> None:
    """Without defaults a family cannot leave a field unset."""
    assert dataclasses.is_dataclass(description)
    for field in dataclasses.fields(description):
        assert field.default is field.default_factory is dataclasses.MISSING, field.name


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda one: one.__name__)
def test_every_field_is_documented(description: type) -> None:
    for field in dataclasses.fields(description):
        assert re.search(rf"\b{field.name}\b", description.__doc__ or ""), field.name


@pytest.mark.parametrize("name", FAMILIES)
def test_names_agree(name: str) -> None:
    family = FAMILIES[name]
    assert family.name == name
    assert any(family_of({"model_type": one}) == name for one in family.config_json.model_types)
    assert family.weights.embedding.startswith(family.base_prefix)
    assert (family.weights.tie == "always") <= (family.weights.head is None)
    assert (family.network.prefix.kind == "cache") == bool(family.network.prefix.arguments)
    assert importlib.util.find_spec(family.patches) is not None


def test_a_type_belongs_to_one_family() -> None:
    types = [one for family in FAMILIES.values() for one in family.config_json.model_types]
    assert len(types) == len(set(types))


def names_of_families(tree: ast.AST) -> set[str]:
    """Return the names of families that a module uses as values."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings]
    return {node.value for node in constants if isinstance(node.value, str)} & FAMILIES.keys()


def test_no_other_file_uses_the_name_of_a_family() -> None:
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE).as_posix()
        if path.startswith(("families/", "models/patches/")):
            continue
        names = names_of_families(ast.parse(file.read_text(encoding="utf-8")))
        if names:
            found[path] = names
    unexpected = {path: names for path, names in found.items() if not path.startswith(tuple(ALLOWED))}
    assert not unexpected
    unused = [allowed for allowed in ALLOWED if not any(path.startswith(allowed) for path in found)]
    assert not unused, "remove what no longer needs to be allowed"


def test_a_comparison_with_a_name_is_found() -> None:
    assert names_of_families(ast.parse('"""llama"""\ndef f(family):\n    return family.name == "llama"\n')) == {"llama"}
    assert names_of_families(ast.parse('def f():\n    """opt"""\n    return 1\n')) == set()


def test_the_descriptions_do_not_load_paddle() -> None:
    code = "import sys, paddle_llm.families.shape; assert not {'paddle', 'paddlenlp', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
