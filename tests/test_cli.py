"""The `paddle-llm` command: what its sub-commands raise, and names that are nearly right."""

from __future__ import annotations

import errno
import signal

import pytest
from click.testing import CliRunner

from paddle_llm.cli import main as cli
from paddle_llm.core.errors import UserError

set_handlers: list[tuple] = []
_INTERRUPTED_WHILE_IMPORTED = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt as error:
    raise ImportError("initialization failed") from error
"""
_COMMAND = """
import click
@click.command()
def command():
    {body}
"""


def run(tmp_path, monkeypatch, module: str):
    """The result of a sub-command that stands in a module of its own."""
    name = f"command_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "mine", (f"{name}:command", ""))
    set_handlers.clear()
    monkeypatch.setattr(cli.signal, "signal", lambda *what: set_handlers.append(what))  # pytest keeps its Ctrl-C
    return CliRunner().invoke(cli.paddle_llm, ["mine"])


@pytest.mark.parametrize(
    "module", [_INTERRUPTED_WHILE_IMPORTED, _COMMAND.format(body="import signal; signal.raise_signal(signal.SIGINT)")]
)
def test_a_ctrl_c_is_one_line(module, tmp_path, monkeypatch):
    result = run(tmp_path, monkeypatch, module)
    assert result.exit_code == 130 and result.stderr == "interrupted\n"


def test_a_second_ctrl_c_does_not_break_into_the_exit(tmp_path, monkeypatch):
    body = "import sys; sys.exit(130)"  # a command that has told of the first one itself
    assert run(tmp_path, monkeypatch, _COMMAND.format(body=body)).exit_code == 130
    assert set_handlers == [(signal.SIGINT, signal.SIG_IGN)]


def test_troubles_of_the_disk_are_one_line(tmp_path, monkeypatch):
    denied = run(
        tmp_path, monkeypatch, _COMMAND.format(body=f"raise OSError({errno.EACCES}, 'Permission denied', 'w')")
    )
    assert isinstance(denied.exception, UserError) and str(denied.exception) == "w: Permission denied"


def test_other_errors_are_not_hidden(tmp_path, monkeypatch):
    assert isinstance(run(tmp_path, monkeypatch, _COMMAND.format(body="1 / 0")).exception, ZeroDivisionError)


def test_a_command_that_is_nearly_right_is_named():
    assert "Did you mean 'export'?" in CliRunner().invoke(cli.paddle_llm, ["exprt"]).stderr
    assert "No such command 'bake'" in CliRunner().invoke(cli.paddle_llm, ["bake"]).stderr
