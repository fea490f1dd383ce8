"""Where this project's Python asks whether it is on a GPU, and which lines only a GPU reaches. Read from the source.

A question is an expression whose value differs between a CPU and a GPU: a predicate of Paddle or of `config/device.py`, a
comparison with "cpu" or "gpu", and, in the packages that run a model, a switch that a CPU does not honour.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("paddle_llm", "custom_ops/fused_ln")
# Name of a function -> its value on a GPU; DEVICE: a string that names one; ASKED: whatever it returns, it was called.
DEVICE, ASKED = "device", "asked"
CALLS: dict[str, bool | str] = {
    "is_gpu_place": True,
    "is_cuda_pinned_place": True,
    "is_cpu_place": False,
    "is_compiled_with_cuda": True,
    "has_gpu": True,
    "paddle_has_gpu": True,
    "on_gpu": True,
    "device_count": True,
    "has_flash_kernels": True,
    "paddle_fused_runs": True,  # Paddle's own fused RMSNorm
    "find_device": DEVICE,
    "get_device": DEVICE,
    "get_device_capability": ASKED,
    "get_device_name": ASKED,
    "max_memory_allocated": ASKED,
}
SWITCHES = frozenset(
    ["use_flash_attention", "use_fused_rope", "do_grad_scaling", "main_grad", "on_gpu", "bf16", "fp16"]
)
# Configurations are checked without a device; their rules speak of all switches.
WITHOUT_SWITCHES = ("paddle_llm/config", "paddle_llm/rehearse/shrink")
# They describe jobs on other machines and use no device: their questions are about the job. tests/planner asks both kinds.
DESCRIPTIONS = ("paddle_llm/planner/", "paddle_llm/cli/plan.py")


@dataclass(frozen=True)
class Question:
    """One place that asks.

    Attributes:
        file: Path from the root of the repository.
        line, column: Where it begins, as `ast` counts.
        text: Source.
        on_gpu: Its value on a GPU: True, False, DEVICE or ASKED.
    """

    file: str
    line: int
    column: int
    text: str
    on_gpu: bool | str

    @property
    def key(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def is_answered(self, values: set[str]) -> bool:
        """Whether `values`, of `described`, hold an answer that only a GPU gives."""
        if self.on_gpu == ASKED:
            return bool(values)
        return ("gpu" if self.on_gpu == DEVICE else str(self.on_gpu)) in values


def described(value: object) -> str:
    """A value of a question, short: "True", "False", or the kind of a device."""
    if isinstance(value, str):
        return value.partition(":")[0]
    if isinstance(value, (bool, int, type(None), list, dict, tuple)):
        return str(bool(value))
    return "True"  # a tensor


def on_gpu(node: ast.AST, switches: bool) -> bool | str | None:
    """The value of an expression on a GPU; None if it is not a question."""
    if isinstance(node, ast.Call):
        return _call_on_gpu(node, switches)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        words = {one.value for one in (node.left, *node.comparators) if isinstance(one, ast.Constant)}
        if isinstance(node.ops[0], (ast.Eq, ast.NotEq)) and words & {"cpu", "gpu"}:
            return isinstance(node.ops[0], ast.Eq) == ("gpu" in words)
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
    return True if switches and name in SWITCHES and isinstance(node.ctx, ast.Load) else None  # type: ignore[attr-defined]


def _call_on_gpu(node: ast.Call, switches: bool) -> bool | str | None:
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    constants = [one.value for one in node.args if isinstance(one, ast.Constant)]
    if name == "startswith" and constants == ["gpu"]:
        return True
    if switches and name in ("getattr", "hasattr") and SWITCHES.intersection(map(str, constants)):
        return True
    return CALLS.get(name)


class _Questions(ast.NodeTransformer):
    """Finds questions, outermost first; `wrap` makes the expression that takes a question's place."""

    def __init__(self, file: str, wrap=None):
        self.file, self.found, self._wrap = file, [], wrap
        self._switches = not file.startswith(WITHOUT_SWITCHES)

    def visit(self, node: ast.AST) -> ast.AST:
        value = on_gpu(node, self._switches)
        if value is None:
            return self.generic_visit(node)
        question = Question(self.file, node.lineno, node.col_offset, ast.unparse(node), value)  # type: ignore[attr-defined]
        self.found.append(question)
        return node if self._wrap is None else ast.copy_location(self._wrap(question, node), node)


def wrapped(tree: ast.Module, file: str, wrap) -> ast.Module:
    """The module with `wrap(question, node)` in the place of each question."""
    return ast.fix_missing_locations(_Questions(file, wrap).visit(tree))


def sources() -> Iterator[str]:
    """Files that are looked at, from the root of the repository."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            path = str(file.relative_to(ROOT))
            if not path.startswith(DESCRIPTIONS):
                yield path


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), file)


def questions(file: str) -> list[Question]:
    finder = _Questions(file)
    finder.visit(ast.parse((ROOT / file).read_text(), file))
    return finder.found


# ---- lines that only a GPU reaches ----------------------------------------------------------------------------------


def gpu_lines(file: str) -> set[int]:
    """Lines that are not reached on a CPU: behind a question, or in a private function that only such lines name."""
    tree, switches = _tree(file), not file.startswith(WITHOUT_SWITCHES)
    lines: set[int] = set()
    for block in _blocks(tree):
        for index, statement in enumerate(block):
            if not isinstance(statement, ast.If):
                continue
            on_cpu = _on_cpu(statement.test, switches)
            if on_cpu is False:
                lines |= _lines(statement.body)
            elif on_cpu is True:
                lines |= _lines(statement.orelse)
                if isinstance(statement.body[-1], (ast.Return, ast.Raise, ast.Continue)):
                    lines |= _lines(block[index + 1 :])
    while more := _functions_named_by(tree, lines) - lines:
        lines |= more
    return lines


def _blocks(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                yield block


def _on_cpu(test: ast.expr, switches: bool) -> bool | None:
    """The value of a condition on a CPU; None where it depends on more than the device."""
    if isinstance(test, ast.BoolOp):
        values = {_on_cpu(value, switches) for value in test.values}
        decisive = isinstance(test.op, ast.Or)
        return decisive if decisive in values else None if None in values else not decisive
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        value = _on_cpu(test.operand, switches)
        return None if value is None else not value
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], (ast.Is, ast.IsNot)):
        asked = on_gpu(test.left, switches)
        return None if asked is None else isinstance(test.ops[0], ast.Is)
    found = on_gpu(test, switches)
    return not found if isinstance(found, bool) else None


def _lines(statements: list[ast.stmt]) -> set[int]:
    return {line for one in statements for line in range(one.lineno, (one.end_lineno or one.lineno) + 1)}


def _functions_named_by(tree: ast.Module, lines: set[int]) -> set[int]:
    found: set[int] = set()
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and function.name.startswith("_"):
            named = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == function.name]
            if named and all(line in lines for line in named):
                found |= _lines(function.body)
    return found
