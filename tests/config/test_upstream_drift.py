"""Every argument in PaddleNLP's own lists is known here. The lists are read from its source, without importing it."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from paddle_llm.config.legacy.paddlenlp import OLD_NAMES, UNSUPPORTED_NAMES
from paddle_llm.config.local_files.published_names import BARE_NAMES
from paddle_llm.config.paddle_switches import SWITCHES
from paddle_llm.config.run_config import FIELD_NAMES

KNOWN = set(FIELD_NAMES) | set(UNSUPPORTED_NAMES) | set(OLD_NAMES)


def source(*path: str) -> ast.Module:
    spec = find_spec("paddlenlp")
    assert spec is not None and spec.submodule_search_locations
    return ast.parse(Path(spec.submodule_search_locations[0], *path).read_text(encoding="utf-8"))


def class_body(tree: ast.Module, name: str) -> list[ast.stmt]:
    return next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def training_arguments() -> list[str]:
    body = class_body(source("trainer", "training_args.py"), "TrainingArguments")
    return [node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]


def llm_meta() -> list[str]:
    names = []
    for node in class_body(source("transformers", "configuration_utils.py"), "LlmMetaConfig"):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            names += [row.elts[0].value for row in node.value.elts]  # type: ignore[attr-defined]
    return names


def test_the_lists_of_upstream_are_not_empty() -> None:
    assert len(training_arguments()) == 121
    assert len(llm_meta()) == 22


@pytest.mark.parametrize("name", training_arguments() + llm_meta())
def test_every_upstream_argument_is_known(name: str) -> None:
    assert name in KNOWN, f"PaddleNLP has an argument {name} that is neither a field nor in UNSUPPORTED_NAMES"


def test_every_switch_of_the_parallel_configs_exists_upstream() -> None:
    lists = [
        [item.value for item in node.elts if isinstance(item, ast.Constant)]
        for node in ast.walk(source("trainer", "training_args.py"))
        if isinstance(node, ast.List)
    ]
    for ours in SWITCHES.values():
        assert any(set(ours) == set(theirs) for theirs in lists), ours


def _tables_of_names() -> set[str]:
    """Return the keys of every `..._PRETRAINED_INIT_CONFIGURATION`, and of the table of every file in a `..._RESOURCE_FILES_MAP`."""
    names: set[str] = set()
    spec = find_spec("paddlenlp")
    assert spec is not None and spec.submodule_search_locations
    for path in Path(spec.submodule_search_locations[0], "transformers").rglob("*.py"):
        text = path.read_bytes()
        if b"pretrained_init_configuration" not in text.lower() and b"files_map" not in text.lower():
            continue
        bodies = ast.parse(text).body
        bodies += [line for one in bodies if isinstance(one, ast.ClassDef) for line in one.body]
        for node in bodies:
            if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
                continue
            called = ast.unparse(node.targets[0]).lower()
            tables = [node.value] if called.endswith("pretrained_init_configuration") else []
            if called.endswith("pretrained_resource_files_map"):
                tables = [one for one in node.value.values if isinstance(one, ast.Dict)]
            names |= {key.value for one in tables for key in one.keys if isinstance(key, ast.Constant)}
    return names


def test_every_built_in_name_without_an_owner_is_in_the_table() -> None:
    bare = {name for name in _tables_of_names() if "/" not in name} - {"model_state"}
    assert bare == BARE_NAMES
