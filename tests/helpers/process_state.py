"""The process-wide state that the product keeps, and what `tests/conftest.py` does with it around every test.

`tests/test_process_state.py` compares the three tables with the code: a new variable of this kind must be added to one of them.
"""

from __future__ import annotations

import ast
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
# Packages with product code, and the folder from which each is imported.
PACKAGES = (("", "paddle_llm"), ("custom_ops", "fused_ln"))


def _clear(module: ModuleType, name: str) -> None:
    getattr(module, name).clear()


def _clear_cache(module: ModuleType, name: str) -> None:
    getattr(module, name).cache_clear()


def _set(value: object) -> Callable[[ModuleType, str], None]:
    return lambda module, name: setattr(module, name, value)


def _release_lock(module: ModuleType, name: str) -> None:
    module.release_output_folder()


# Variable -> how it gets its initial value before and after every test. A module that is not imported is not touched.
RESET: dict[str, Callable[[ModuleType, str], None]] = {
    "fused_ln:_report": _clear_cache,
    "paddle_llm.checkpoint.output_lock:_held": _release_lock,
    "paddle_llm.core.console:_collectors": _clear,
    "paddle_llm.core.console:_printed_once": _clear,
    "paddle_llm.core.durable_files:_observer": _set(None),
    "paddle_llm.data.instructions.dataset_info:_read": _clear_cache,
    "paddle_llm.data.text_files:_reported": _clear,
    "paddle_llm.data.tokenizers.hugging_face:_reported": _clear,
    "paddle_llm.models.configuration.misspelled_fields:_say_once": _clear_cache,
    "paddle_llm.models.patches.shared.attention_kernels:_device_has_flash_kernels": _clear_cache,
    "paddle_llm.parallel.process.failure_detection:_last_raised": _set(None),
    "paddle_llm.parallel.process.first_rank:_calls": _set(0),
    "paddle_llm.parallel.process.parent:_watching": _set(False),
    "paddle_llm.parallel.process.stop_request:_current": _set(None),
}

# Dictionaries that a test leaves as it found them. A fixture of a module may have changed them for all of its tests.
RESTORED: tuple[str, ...] = (
    "paddle_llm.models.patches.shared.cpu_switch:_state",
    "paddle_llm.models.patches.shared.decoders:_state",
)

_RANK = "Set only in a rank, which is a separate process in every test."
_PURE = "Its value depends only on the argument."
_PATCHED = "Paddle and PaddleNLP stay patched until the process ends."

# Variable -> why tests cannot influence each other through it.
KEPT: dict[str, str] = {
    "fused_ln:_library": "Paddle cannot unload an operator.",
    "fused_ln:_register": "Paddle cannot unload an operator.",
    "fused_ln:_why_not_running": "It depends on the machine. A test that replaces the kernels clears it.",
    "fused_ln.fallback:_why_not_paddle_fused": "It depends on the machine. A test that replaces the kernels clears it.",
    "paddle_llm.config.parsing.values:kind_of": _PURE,
    "paddle_llm.core.upstream:REPLACEMENTS": _PATCHED,
    "paddle_llm.data.chat.renderer:_compile": _PURE,
    "paddle_llm.data.corpus.workers:_encoder": "Set only in a worker of a build, which is a separate process.",
    "paddle_llm.data.instructions.record_templates:_environment": "It cannot be changed.",
    "paddle_llm.models.patches:_applied": _PATCHED,
    "paddle_llm.models.patches.bloom:_all_slopes": _PURE,
    "paddle_llm.parallel.gloo.backend:_installed": _PATCHED,
    "paddle_llm.parallel.gloo.rendezvous:_created": _RANK,
    "paddle_llm.parallel.gloo.rendezvous:_infos": _RANK,
    "paddle_llm.parallel.gloo.rendezvous:_server": _RANK,
    "paddle_llm.parallel.gloo.transfers:_channels": _RANK,
    "paddle_llm.parallel.gloo.transfers:_connections": _RANK,
    "paddle_llm.parallel.gloo.transfers:_collecting": _RANK,
    "paddle_llm.parallel.process.exit_code:keep_exit_code": "It registers one exit handler; a second one would run twice.",
    "paddle_llm.parallel.process.failure_detection:_current": _RANK,
    "paddle_llm.parallel.process.start:_flags_hidden": _PATCHED,
    "paddle_llm.rehearse.faults.registry:FAULTS": "Filled when its modules are imported.",
    "paddle_llm.planner.memory.schedule:_simulate": _PURE,
    "paddle_llm.planner.pipeline.events:events_of": _PURE,
    "paddle_llm.planner.pipeline.schedules:build_schedule": _PURE,
    "paddle_llm.planner.shapes.weights:_embedding": _PURE,
    "paddle_llm.planner.shapes.weights:_layer": _PURE,
    "paddle_llm.planner.time.layers:first_trained_layer": _PURE,
    "paddle_llm.planner.time.passes:_parts": _PURE,
}

_HANDLED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SET_BY_PYTEST = "PYTEST_CURRENT_TEST"


def reset() -> None:
    """Give every variable in `RESET` its initial value."""
    for variable, how in RESET.items():
        name, _, attribute = variable.partition(":")
        if name in sys.modules:
            how(sys.modules[name], attribute)


@contextmanager
def isolated() -> Iterator[None]:
    """Start the block with initial state; afterwards restore the environment, signal handlers and `RESTORED`."""
    reset()
    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in _HANDLED_SIGNALS}
    contents = {variable: dict(_value(variable)) for variable in RESTORED if variable.partition(":")[0] in sys.modules}
    try:
        yield
    finally:
        reset()
        for variable, content in contents.items():
            _value(variable).update(content)
        for number, handler in handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)
        _restore_environment(environment)


def _value(variable: str) -> dict:
    name, _, attribute = variable.partition(":")
    return getattr(sys.modules[name], attribute)


def _restore_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys() - {_SET_BY_PYTEST}:
        del os.environ[name]
    for name, value in before.items():
        if name != _SET_BY_PYTEST and os.environ.get(name) != value:
            os.environ[name] = value


# ---- which variables are state --------------------------------------------------------------------------------------

_CONTAINERS = {
    "Counter", "ContextVar", "OrderedDict", "WeakKeyDictionary", "WeakSet", "WeakValueDictionary", "count", "defaultdict",
    "deque", "dict", "list", "local", "set",
}  # fmt: skip
_CHANGES = {
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "remove", "setdefault",
    "update",
}  # fmt: skip
_CACHES = {"cache", "lru_cache"}


def variables_with_state() -> set[str]:
    """Return the variables of modules and classes, as "module:name", that the product changes after import.

    These are: names of a `global` statement; functions with a cache; empty containers; other containers that their module
    changes inside a function.
    """
    found: set[str] = set()
    for folder, package in PACKAGES:
        for file in sorted((ROOT / folder / package).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found |= {f"{module}:{name}" for name in state_in(file.read_text(encoding="utf-8"))}
    return found


def state_in(source: str) -> set[str]:
    """Return the names of one module's variables that hold state; see `variables_with_state`."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    names = {name for node in nodes if isinstance(node, ast.Global) for name in node.names}
    names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef) and _is_cached(node)}
    changed = _changed_in_functions(nodes)
    for prefix, statement in _assignments(tree.body):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            if isinstance(target, ast.Name) and statement.value is not None:
                name = prefix + target.id
                if _is_empty(statement.value) or (_is_container(statement.value) and name in changed):
                    names.add(name)
    return names


def _assignments(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.Assign | ast.AnnAssign]]:
    """Yield the assignments of a module and its classes with the name of the class and a dot, or nothing."""
    for statement in body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            yield prefix, statement
        elif isinstance(statement, ast.ClassDef):
            yield from _assignments(statement.body, f"{prefix}{statement.name}.")
        elif isinstance(statement, (ast.If, ast.Try, ast.With)):
            yield from _assignments(statement.body, prefix)


def _is_cached(function: ast.FunctionDef) -> bool:
    called = [one.func if isinstance(one, ast.Call) else one for one in function.decorator_list]
    return any(_last_name(one) in _CACHES for one in called)


def _is_empty(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return _last_name(value.func) in _CONTAINERS and not value.args
    return (isinstance(value, ast.Dict) and not value.keys) or (isinstance(value, ast.List) and not value.elts)


def _is_container(value: ast.expr) -> bool:
    displays = (ast.Dict, ast.DictComp, ast.List, ast.ListComp, ast.Set, ast.SetComp)
    return isinstance(value, displays) or (isinstance(value, ast.Call) and _last_name(value.func) in _CONTAINERS)


def _changed_in_functions(nodes: list[ast.AST]) -> set[str]:
    """Return the names of variables that a function changes in place."""
    found: set[str] = set()
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    for node in [inner for function in functions for inner in ast.walk(function)]:
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
            found.add(ast.unparse(node.value))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGES:
            found.add(ast.unparse(node.func.value))
        elif isinstance(node, ast.AugAssign):
            found.add(ast.unparse(node.target))
    return found


def _last_name(function: ast.expr) -> str:
    return ast.unparse(function).rpartition(".")[2]
