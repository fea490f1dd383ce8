"""Pytest plugin: `--gpu-answers FILE` records the answers to the questions of `tests/helpers/gpu/questions.py`.

Load it with `-p tests.helpers.gpu.probe`: modules are compiled with a call around each question when they are imported.
"""

from __future__ import annotations

import ast
import builtins
import json
import sys
from collections import defaultdict
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from tests.helpers.gpu.questions import PACKAGES, ROOT, Question, described, wrapped

_HOOK = "__gpu_question__"
_answers: dict[str, set[str]] = defaultdict(set)


def _record(key: str, value: Any) -> Any:
    _answers[key].add(described(value))
    return value


def _recorded(question: Question, node: ast.AST) -> ast.AST:
    return ast.Call(ast.Name(_HOOK, ast.Load()), [ast.Constant(question.key), node], [])


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = Path(self.path)
        tree = wrapped(ast.parse(path.read_text(), self.path), str(path.relative_to(ROOT)), _recorded)
        return compile(tree, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    roots = frozenset(Path(package).name for package in PACKAGES)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.roots:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


setattr(builtins, _HOOK, _record)
sys.meta_path.insert(0, _Finder())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--gpu-answers", metavar="FILE", help="write the answers that questions for the device got as JSON"
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    if file := session.config.getoption("--gpu-answers"):
        Path(file).write_text(json.dumps({key: sorted(values) for key, values in _answers.items()}))
