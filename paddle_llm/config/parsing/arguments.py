"""Split `[CONFIG.json] [--key value ...]` into raw values. Names and types are not checked here."""

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
    """Value of a flag without a value (`--do_train`)."""

    def __repr__(self) -> str:
        return "true"


BARE = _Bare()


@dataclass(frozen=True)
class RawValue:
    """One key that the user wrote, with its value.

    Attributes:
        name: Name as written, or its translation.
        raw: JSON value, text, list of texts, or BARE.
        origin: "flag" or "file PATH".
        old: Name as written, if `name` is its translation.
    """

    name: str
    raw: Any
    origin: str
    old: str = ""

    @property
    def is_flag(self) -> bool:
        """Whether the value comes from the command line."""
        return self.origin == FLAG

    def display_name(self) -> str:
        """Return the key as the user wrote it: `--key`, or `"key" in x.json`."""
        name = self.old or self.name
        return f"--{name}" if self.is_flag else f'"{name}" in {self.origin.removeprefix("file ")}'


@dataclass
class Arguments:
    """All raw values, and the mistakes in their syntax.

    Attributes:
        given: Raw values; those of the file come first.
        problems: Messages about mistakes.
        notices: Messages that do not stop the run.
        file_is_incomplete: Whether the config file could not be read completely, so that keys may seem to be missing.
    """

    given: list[RawValue] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    file_is_incomplete: bool = False


def read_arguments(argv: list[str], known: Collection[str]) -> Arguments:
    """Split a command line and read the JSON file that it names, if any.

    Args:
        argv: Arguments without the program's name.
        known: All names of keys, to recognise two arguments without a space between them.
    """
    result = Arguments()
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        _read_file(argv.pop(0), result)
    _read_flags(argv, known, result)
    return result


def _read_file(name: str, result: Arguments) -> None:
    result.file_is_incomplete = True
    try:
        path = Path(expand_path(name))
    except PathError as error:
        result.problems.append(f"{name}: {error}.")
        return
    file = read_config_file(name, path)
    result.problems += file.problems
    result.file_is_incomplete = not file.is_read
    # "$schema" is for editors: it names configs/schema.json.
    result.given += [RawValue(key, value, f"file {name}") for key, value in file.values.items() if key != "$schema"]


def _read_flags(argv: list[str], known: Collection[str], result: Arguments) -> None:
    flags: dict[str, RawValue] = {}
    for name, values in _split(_split_joined(argv, known, result), result):
        raw: Any = BARE if not values else values[0] if len(values) == 1 else values
        before = flags.get(name)
        if before is not None and before.raw != raw:
            result.notices.append(f"--{name} is given twice; using the last value: {as_text(raw)}.")
        flags[name] = RawValue(name, raw, FLAG)
    result.given += flags.values()


def as_text(raw: Any) -> str:
    """Return a raw value as a user would write it."""
    if isinstance(raw, list):
        return " ".join(map(str, raw))
    return str(raw).lower() if isinstance(raw, bool) else str(raw)


def _split_joined(argv: list[str], known: Collection[str], result: Arguments) -> list[str]:
    """Split arguments such as `20--dataloader_num_workers` and report them, so that later checks see the intended ones."""
    separated: list[str] = []
    for token in argv:
        match = re.fullmatch(r"(.*?[^-])--(\w+)(=.*)?", token)
        if match is None or match[2] not in known:
            separated.append(token)
            continue
        value, flag = match[1].rstrip("\\"), "--" + match[2] + (match[3] or "")
        result.problems.append(f"{token}: missing space. Write {value} {flag}")
        separated += [value, flag]
    return separated


def _split(argv: list[str], result: Arguments) -> list[tuple[str, list[str]]]:
    """Return each flag with its values."""
    flags: list[tuple[str, list[str]]] = []
    for token in argv:
        if token.startswith("--") and len(token) > 2:
            name, equals, value = token[2:].partition("=")
            flags.append((name, [value] if equals else []))
        elif re.match(r"-[A-Za-z_]", token):
            result.problems.append(f"{token}: a flag needs two dashes. Write -{token}")
            flags.append((token[1:], []))
        elif flags:
            flags[-1][1].append(token)
        else:
            result.problems.append(f"{token}: unexpected argument. Give one CONFIG.json, then --key value.")
    return flags
