"""Option type for paths: `~` and environment variables are expanded as in a config."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.core.paths import PathError, expand_blend, expand_path


class PathOption(click.Path):
    """A path on the command line, converted to text or to `pathlib.Path`.

    Args:
        as_path: Whether to convert to a `Path`.
        blend: Whether the value may be alternating weights and paths.
    """

    name = "path"

    def __init__(self, *, as_path: bool = False, blend: bool = False) -> None:
        super().__init__(path_type=Path if as_path else None)
        self._as_path, self._blend = as_path, blend

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Expand a path and report a change.

        Raises:
            UserError: If the path cannot be expanded.
        """
        written = os.fspath(value)
        shown = _name_of(param)
        try:
            expanded = expand_blend(written) if self._blend else expand_path(written)
        except PathError as error:
            raise UserError(f"{shown} {written}: {error}.") from None
        if expanded != written:
            say(f"{shown} {written} is read as {expanded}.")
        return Path(expanded) if self._as_path else expanded


def _name_of(param: click.Parameter | None) -> str:
    if param is None:
        return "The path"
    return param.opts[0] if isinstance(param, click.Option) else str(param.metavar or param.name).upper()


PATH = PathOption()
PATHLIB = PathOption(as_path=True)
BLEND = PathOption(blend=True)
