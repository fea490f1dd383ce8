"""From `[CONFIG.json] [--key value ...]` to a list of what was given, before any name or type is judged."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddle_llm.config.parsing.config_file import read_config_file
from paddle_llm.core.paths import PathError, expand_path

FLAG = "flag"


class _Bare:
    """A flag without a value (`--do_train`)."""

    def __repr__(self) -> str:
        return "true"


BARE = _Bare()


@dataclass(frozen=True)
class RawValue:
    """One key that somebody wrote.

    Attributes:
        name: as written, or as translated.
        raw: a JSON value, a text, a list of texts, or BARE.
        origin: "flag" or "file PATH".
        old: the name as written, when `name` is its translation.
    """

    name: str
    raw: Any
    origin: str
    old: str = ""

    @property
    def is_flag(self) -> bool:
        return self.origin == FLAG

    def display_name(self, name: str | None = None) -> str:
        """The key as its author would recognise it: `--key`, or `"key" in file x.json`."""
        name = name or self.old or self.name
        return f"--{name}" if self.is_flag else f'"{name}" in {self.origin.removeprefix("file ")}'


@dataclass
class Arguments:
    """Everything given, with what was wrong about the writing itself.

    Attributes:
        unread: the file that was named holds something that could not be read, so that what seems absent may not be.
    """

    given: list[RawValue] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    unread: bool = False


def read_arguments(argv: list[str], known: Collection[str]) -> Arguments:
    """Split `argv` and read the JSON file that it names, if any. File entries come before flags.

    Args:
        argv: without the program's name.
        known: every name that is a key, to recognise two arguments that lost the space between them.
    """
    result = Arguments()
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        _read_file(argv.pop(0), result)
    _read_flags(argv, known, result)
    return result


def _read_file(name: str, result: Arguments) -> None:
    result.unread = True
    try:
        path = Path(expand_path(name))
    except PathError as error:
        result.problems.append(f"{name}: {error}.")
        return
    read = read_config_file(name, path)
    result.problems += read.problems
    result.unread = not read.is_read
    # "$schema" is for editors: it names configs/schema.json.
    result.given += [RawValue(key, value, f"file {name}") for key, value in read.values.items() if key != "$schema"]


def _read_flags(argv: list[str], known: Collection[str], result: Arguments) -> None:
    flags: dict[str, RawValue] = {}
    for name, values in _split(_unglue(argv, known, result), result):
        raw: Any = BARE if not values else values[0] if len(values) == 1 else values
        before = flags.get(name)
        if before is not None and before.raw != raw:
            result.notices.append(f"--{name} is given twice; the last one counts: {_shown(raw)}.")
        flags[name] = RawValue(name, raw, FLAG)
    result.given += flags.values()


def _shown(raw: Any) -> str:
    return " ".join(raw) if isinstance(raw, list) else str(raw)


def _unglue(argv: list[str], known: Collection[str], result: Arguments) -> list[str]:
    """Take `20--dataloader_num_workers` apart; reported here, once, so that what follows is judged as it was meant."""
    whole: list[str] = []
    for token in argv:
        match = re.fullmatch(r"(.*?[^-])--(\w+)(=.*)?", token)
        if match is None or match[2] not in known:
            whole.append(token)
            continue
        value, flag = match[1].rstrip("\\"), "--" + match[2] + (match[3] or "")
        result.problems.append(f"{token}: missing space. Write {value} {flag}")
        whole += [value, flag]
    return whole


def _split(argv: list[str], result: Arguments) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for token in argv:
        if token.startswith("--") and len(token) > 2:
            name, equals, value = token[2:].partition("=")
            found.append((name, [value] if equals else []))
        elif re.match(r"-[A-Za-z_]", token):
            result.problems.append(f"{token}: flags begin with two dashes: -{token}")
            found.append((token[1:], []))
        elif found:
            found[-1][1].append(token)
        else:
            result.problems.append(f"{token}: not expected here. One CONFIG.json, then --key value.")
    return found
