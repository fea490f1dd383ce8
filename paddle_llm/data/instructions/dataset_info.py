"""Reads LLaMA-Factory's `dataset_info.json`, which gives the column and role names of the files beside it.

Rows of such files are converted to the keys and roles of our formats. Ranking and KTO data are skipped. See
LLaMA-Factory, src/llamafactory/data/parser.py (DatasetAttr) and converter.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.data.instructions.conversation import BadRow

FILE = "dataset_info.json"
_SOURCES = ("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_KNOWN = {*_SOURCES, "formatting", "ranking", "columns", "tags", "split", "subset", "folder", "num_samples", "hub_url"}
_COLUMNS = ("prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios")
_PREFERENCES = ("chosen", "rejected", "kto_tag")
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt", "observation_tag": "observation",
    "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip


@dataclass(frozen=True)
class FileInfo:
    """Entry of one file in `dataset_info.json`.

    Attributes:
        name: Name of the dataset.
        where: Path of the dataset_info.json.
        sharegpt: Whether rows are lists of messages; else one question and one answer.
        columns: Column names by LLaMA-Factory's names of their purpose.
        tags: Key and role names of messages by LLaMA-Factory's names of their purpose.
        named: Columns that the entry names; the others in `columns` are LLaMA-Factory's defaults.
        preference: Whether the rows are preference data.
        ignored: Attributes without effect here.
    """

    name: str
    where: str
    sharegpt: bool
    columns: Mapping[str, str]
    tags: Mapping[str, str]
    named: frozenset[str] = frozenset()
    preference: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def format(self) -> str:
        """Name of the format of converted rows."""
        return "sharegpt" if self.sharegpt else "alpaca"

    def rename(self, row: object) -> object:
        """Convert a row to the keys and roles of `format`.

        Unused columns are renamed, so that they are reported as ignored.

        Raises:
            BadRow: If a named column is missing.
        """
        if not isinstance(row, Mapping):
            return row
        needed = ("messages",) if self.sharegpt else ("prompt", "response")
        for use in needed:
            if use in self.columns and row.get(self.columns[use]) is None:
                raise BadRow(f"no column {self.columns[use]!r}, which {FILE} names for {use} in {self.name}")
        targets = {} if self.sharegpt else _ALPACA
        renamed = {
            "conversations" if use == "messages" else targets.get(use, use): row.get(column)
            for use, column in self.columns.items()
        }
        if self.sharegpt:
            messages = renamed.get("conversations")
            renamed["conversations"] = [self._message(m) for m in messages] if isinstance(messages, list) else messages
        others = {key: value for key, value in row.items() if key not in self.columns.values()}
        used = ("tools", "system", "history", "input", *renamed)
        others = {f"{key} (not in {FILE})" if key in used else key: value for key, value in others.items()}
        return {**others, **renamed}

    def _message(self, message: object) -> object:
        if not isinstance(message, Mapping):
            return message
        roles: dict[object, str] = {
            self.tags[f"{role}_tag"]: known for role, known in _ROLES.items() if f"{role}_tag" in self.tags
        }
        renamed = {
            key: value for key, value in message.items() if key not in (self.tags["role_tag"], self.tags["content_tag"])
        }
        role = message.get(self.tags["role_tag"])
        return {**renamed, "from": roles.get(role, role), "value": message.get(self.tags["content_tag"])}


_ROLES = {
    "user": "human", "assistant": "gpt", "observation": "observation", "function": "function_call", "system": "system",
}  # fmt: skip


def find_entry(path: str) -> FileInfo | None:
    """Return the entry of a file in the nearest dataset_info.json (in its folder or one above); None if there is none.

    Raises:
        UserError: If that file is not valid.
    """
    absolute = Path(os.path.abspath(path))
    for folder in absolute.parents[:2]:
        if (folder / FILE).is_file():
            entries = _read(folder / FILE, (folder / FILE).stat().st_mtime_ns)
            relative = absolute.relative_to(folder)
            found = next((entries[str(name)] for name in (relative, *relative.parents) if str(name) in entries), None)
            if found is not None:
                return _single_entry(found, path)
    return None


def _single_entry(found: list[FileInfo], path: str) -> FileInfo:
    """Return the entry of a file; if several entries name it, they must agree."""
    if any(replace(info, name=found[0].name) != found[0] for info in found):
        names = " and ".join(info.name for info in found)
        raise UserError(
            f"{path}: the entries {names} of {found[0].where} describe the file differently. Keep one of them."
        )
    return found[0]


@lru_cache(maxsize=32)
def _read(path: Path, changed: int) -> dict[str, list[FileInfo]]:
    """Return entries by file name, which may have Windows separators; none if the JSON describes something else.

    `datasets` also writes files of this name.
    """
    entries = read_json_object(path)
    found: dict[str, list[FileInfo]] = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not set(entry) & set(_SOURCES):
            continue
        file = entry.get("file_name")
        if isinstance(file, str):
            found.setdefault(os.path.normpath(file.replace("\\", "/")), []).append(_entry(path, name, entry))
    return found


def _entry(path: Path, name: str, entry: dict[str, Any]) -> FileInfo:
    if "format" in entry and "formatting" not in entry:
        raise UserError(f"{path}: {name}: unknown setting 'format'. Did you mean LLaMA-Factory's 'formatting'?")
    formatting = entry.get("formatting", "alpaca")
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    if (
        formatting not in ("alpaca", "sharegpt", "openai")
        or not isinstance(columns, dict)
        or not isinstance(tags, dict)
    ):
        raise UserError(
            f"{path}: {name}: invalid entry: formatting {formatting!r}, columns or tags are not as in LLaMA-Factory. Correct it."
        )
    unknown = [key for key in columns if key not in (*_COLUMNS, *_PREFERENCES)] + [
        key for key in tags if key not in _TAGS
    ]
    if unknown:
        raise UserError(f"{path}: {name}: unknown columns or tags: {', '.join(unknown)}. Correct the entry.")
    sharegpt = formatting != "alpaca"
    used = {use: str(column) for use, column in columns.items() if use in _COLUMNS and column}
    defaults = {"messages": "conversations"} if sharegpt else {} if columns else _ALPACA
    openai = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
    }
    known_tags = {**_TAGS, **(openai if formatting == "openai" else {})}
    return FileInfo(
        name,
        str(path),
        sharegpt,
        {**defaults, **used},
        {**known_tags, **{tag: str(word) for tag, word in tags.items() if word}},
        frozenset(used.values()),
        bool(entry.get("ranking")) or any(columns.get(use) for use in _PREFERENCES),
        tuple(
            key
            for key in ("num_samples", "split", "subset", *sorted(set(entry) - _KNOWN))
            if entry.get(key) is not None
        ),
    )
