"""The `paddle-llm` command: errors of its subcommands, similar names, and the help of every command."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from paddle_llm.cli import main as cli
from paddle_llm.core.errors import UserError

set_handlers: list[tuple] = []
_INTERRUPTED_DURING_IMPORT = """
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
    """Return the result of a subcommand with the given source."""
    name = f"command_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "mine", (f"{name}:command", ""))
    set_handlers.clear()
    monkeypatch.setattr(cli.signal, "signal", lambda *what: set_handlers.append(what))  # pytest keeps its handler
    return CliRunner().invoke(cli.paddle_llm, ["mine"])


@pytest.mark.parametrize(
    "module", [_INTERRUPTED_DURING_IMPORT, _COMMAND.format(body="import signal; signal.raise_signal(signal.SIGINT)")]
)
def test_ctrl_c_is_one_line(module, tmp_path, monkeypatch):
    result = run(tmp_path, monkeypatch, module)
    assert result.exit_code == 130 and result.stderr == "interrupted\n"


def test_a_second_ctrl_c_does_not_interrupt_the_exit(tmp_path, monkeypatch):
    body = "import sys; sys.exit(130)"  # a command that has reported the first Ctrl-C itself
    assert run(tmp_path, monkeypatch, _COMMAND.format(body=body)).exit_code == 130
    assert set_handlers == [(signal.SIGINT, signal.SIG_IGN)]


def test_disk_errors_are_one_line(tmp_path, monkeypatch):
    denied = run(
        tmp_path, monkeypatch, _COMMAND.format(body=f"raise OSError({errno.EACCES}, 'Permission denied', 'w')")
    )
    assert (
        isinstance(denied.exception, UserError)
        and str(denied.exception) == "w: Permission denied. Check the path and its permissions."
    )


def test_other_errors_are_not_hidden(tmp_path, monkeypatch):
    assert isinstance(run(tmp_path, monkeypatch, _COMMAND.format(body="1 / 0")).exception, ZeroDivisionError)


def test_a_similar_command_is_suggested():
    assert "Did you mean 'export'?" in CliRunner().invoke(cli.paddle_llm, ["exprt"]).stderr
    assert "No such command 'bake'" in CliRunner().invoke(cli.paddle_llm, ["bake"]).stderr


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))


def test_every_command_has_help_with_an_example():
    commands = list(_commands(cli.paddle_llm))
    assert len(commands) >= 12
    for path, command in commands:
        shown = CliRunner().invoke(cli.paddle_llm, [*path, "--help"])
        assert shown.exit_code == 0, path
        assert "\\b" not in shown.stdout, f"{path}: click needs the control character \\b, not its escape"
        if not isinstance(command, click.Group):
            assert "Example" in shown.stdout, path
