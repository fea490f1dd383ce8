"""Tests do not influence each other through variables of the product: every such variable is listed, and reset."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path

import pytest

from paddle_llm.checkpoint.output_lock import RUN_LOCK, hold_output_folder
from paddle_llm.core import console
from paddle_llm.core.console import say_once
from tests.helpers.process_state import KEPT, RESET, RESTORED, isolated, reset, state_in, variables_with_state


def test_every_variable_with_state_is_listed_once() -> None:
    """Add a new variable to `RESET`, or to `KEPT` with a reason, in tests/helpers/process_state.py."""
    listed = [*RESET, *RESTORED, *KEPT]
    assert len(listed) == len(set(listed))
    assert variables_with_state() == set(listed)


def test_every_kept_variable_has_a_reason() -> None:
    assert all(reason.endswith(".") for reason in KEPT.values())


def test_every_variable_to_reset_can_be_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "custom_ops")
    for variable in [*RESET, *RESTORED]:
        name, _, attribute = variable.partition(":")
        assert hasattr(importlib.import_module(name), attribute), variable
    reset()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("seen = set()", {"seen"}),
        ("seen: dict[str, int] = {}", {"seen"}),
        ("class Box:\n    seen = []", {"Box.seen"}),
        ("count = 0\ndef next():\n    global count\n    count += 1", {"count"}),
        ("@lru_cache(maxsize=2)\ndef read(path): ...", {"read"}),
        ("@functools.cache\ndef read(path): ...", {"read"}),
        ("table = {'a': 1}\ndef add(key):\n    table[key] = 1", {"table"}),
        ("names = ['a']\ndef add(name):\n    names.append(name)", {"names"}),
        ("pending = threading.local()", {"pending"}),
        ("table = {'a': 1}\nnames = ['a']\nlimit = 3\nempty = ()", set()),
        ("class Box:\n    @cached_property\n    def value(self): ...", set()),
        ("def local():\n    seen = []\n    seen.append(1)", set()),
    ],
)
def test_variables_with_state_are_found(source: str, names: set[str]) -> None:
    assert state_in(source) == names


def test_a_message_is_printed_once_per_test(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with isolated():
            say_once("a line")
            say_once("a line")
    assert capsys.readouterr().err == "a line\na line\n"
    assert not console._printed_once


def test_a_lock_is_released(tmp_path: Path) -> None:
    with isolated():
        hold_output_folder(tmp_path)
        assert (tmp_path / RUN_LOCK).exists()
    assert not (tmp_path / RUN_LOCK).exists()


def test_the_environment_and_signal_handlers_are_restored() -> None:
    before, handler = dict(os.environ), signal.getsignal(signal.SIGINT)
    with isolated():
        os.environ["OMP_NUM_THREADS"] = "17"
        del os.environ["PATH"]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGINT) is handler


def test_modules_that_are_not_imported_stay_so() -> None:
    """`import paddle` takes seconds: a test of the configuration must not load it."""
    before = set(sys.modules)
    with isolated():
        pass
    assert set(sys.modules) == before


def test_a_switch_of_the_kernels_is_restored() -> None:
    from paddle_llm.models.patches.shared import cpu_switch

    before = cpu_switch.is_enabled()
    with isolated():
        (cpu_switch.disable if before else cpu_switch.enable)()
    assert cpu_switch.is_enabled() == before
