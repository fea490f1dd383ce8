"""`paddle-llm --install-completion`: complete commands, flags and names of recipes in the shell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError, exit_on_user_error

_PROGRAM = "paddle-llm"
_VARIABLE = "_PADDLE_LLM_COMPLETE"  # click derives it from the program's name
_SHELLS = ("bash", "zsh", "fish")


def completion_option(command: Any) -> Any:
    """Add `--install-completion` to a group."""
    option = click.option(
        "--install-completion",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_install,
        help="Let the shell complete commands, flags and recipes, and exit.",
    )
    return option(command)


def _install(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value:
        return
    with exit_on_user_error():
        shell = Path(os.environ.get("SHELL", "")).name
        kind = get_completion_class(shell) if shell in _SHELLS else None
        if kind is None:
            raise UserError(f"SHELL = {os.environ.get('SHELL', '')!r}: completion exists for {', '.join(_SHELLS)}.")
        target, further = _target(shell)
        source = kind(ctx.command, {}, _PROGRAM, _VARIABLE).source()
        write_atomically(target, (_for_fpath(source) if shell == "zsh" else source).encode())
        say(f"completion for {shell} was written to {target}. {further}")
    ctx.exit()


def _for_fpath(source: str) -> str:
    """Return click's script for zsh without its last lines, which distinguish a file in fpath from a sourced one.

    zsh runs the whole file at every completion. At the second one, the lines of click 8 take it for a sourced file and complete
    nothing.
    """
    functions, condition, _ = source.partition("if [[ $zsh_eval_context")
    call = "_paddle_llm_completion"
    return f'{functions}{call} "$@"\n' if condition and f"{call}()" in functions else source


def _target(shell: str) -> tuple[Path, str]:
    """Return the file for a shell's completion, and what else the user has to do."""
    home = Path.home()
    if shell == "fish":
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return folder / "fish" / "completions" / f"{_PROGRAM}.fish", "It is active in new shells."
    if shell == "zsh":
        further = "Add these lines to ~/.zshrc: fpath=(~/.zfunc $fpath); autoload -Uz compinit; compinit"
        return home / ".zfunc" / f"_{_PROGRAM}", further
    folder = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    target = folder / "bash-completion" / "completions" / _PROGRAM
    further = f"It is active in new shells. Without the package bash-completion, add to ~/.bashrc: source {target}"
    return target, further
