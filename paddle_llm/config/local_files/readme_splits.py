"""Read the splits that the README.md of a folder from the Hugging Face Hub declares (`configs`), as `datasets` does."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paddle_llm.config.local_files.split_names import DataFolder, kind_of_file, splits_of_name, splits_of_path

_KNOWN = {"config_name", "data_files", "data_dir", "default", "description", "version"}


@dataclass(frozen=True)
class Declaration:
    """Declaration of the splits in README.md.

    Attributes:
        patterns: Patterns of files by the name of the split.
        folder: Folder whose file names determine the splits instead, relative to README.md; None with patterns.
    """

    patterns: dict[str, list[str]]
    folder: str | None = None


def declared_splits(folder: str, names: list[str], found: DataFolder) -> Declaration | None:
    """Return the declaration of the only or the default configuration of a folder; None without any.

    Args:
        folder: Folder with the README.md.
        names: Paths of the files in the folder, relative to it.
        found: Result to which problems and notes are added.
    """
    readme = Path(folder, "README.md")
    configs = _metadata(readme).get("configs") if "README.md" in names else None
    configs = [c for c in configs if isinstance(c, dict)] if isinstance(configs, list) else []
    configs = [c for c in configs if c.get("data_files") or c.get("data_dir")]
    chosen = (
        configs if len(configs) < 2 else [c for c in configs if c.get("default") or c.get("config_name") == "default"]
    )
    if not configs:
        return None
    if len(chosen) != 1:
        known = ", ".join(str(c.get("config_name")) for c in configs)
        found.problems.append(
            f"{readme}: the data set has several configurations: {known}. Give the folder of one, or a pattern for its files."
        )
        return Declaration({})
    if ignored := sorted(map(str, set(chosen[0]) - _KNOWN)):
        found.notes.append(f"{readme}: these settings of the configuration have no effect: {', '.join(ignored)}")
    if not chosen[0].get("data_files"):
        return Declaration({}, str(chosen[0]["data_dir"]))
    return Declaration(_patterns(chosen[0]["data_files"]))


def _patterns(entries: Any) -> dict[str, list[str]]:
    """Return the patterns of `data_files` by split. It is a mapping, a list of splits, or the files of the split train."""
    if isinstance(entries, dict):
        entries = [{"split": split, "path": path} for split, path in entries.items()]
    entries = entries if isinstance(entries, list) else [entries]
    patterns: dict[str, list[str]] = {}
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
        paths = entry.get("path")
        patterns.setdefault(str(entry.get("split")), []).extend(map(str, paths if isinstance(paths, list) else [paths]))
    return patterns


def _metadata(readme: Path) -> dict[str, object]:
    try:
        text = readme.read_text(encoding="utf-8-sig", errors="replace")
        match = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        found = yaml.safe_load(match[1]) if match else None
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def sort_declared(found: DataFolder, declared: dict[str, list[str]], names: list[str]) -> None:
    """Sort the files of a folder into the declared splits, given as patterns by their names."""
    by_split: dict[str, list[str]] = {}
    for name, patterns in declared.items():
        splits = splits_of_name(name)
        if len(splits) != 1:
            for pattern in patterns:
                found.skipped[pattern] = f"README.md declares it as the split {name}"
            continue
        by_split.setdefault(next(iter(splits)), []).append(name)
    for split, declared_names in by_split.items():
        if len(declared_names) > 1:
            found.problems.append(
                f"{found.path}: README.md declares several splits of {split} data: {', '.join(declared_names)}. Give a pattern for the "
                "files of one."
            )
        patterns = [pattern for name in declared_names for pattern in declared[name]]
        matched = {
            path for pattern in patterns for path in glob.glob(os.path.join(found.path, pattern), recursive=True)
        }
        found.files[split] = sorted(path for path in matched if os.path.isfile(path))
        for path in found.files[split]:
            others = splits_of_path(os.path.relpath(path, found.path)) - {split}
            if kind_of_file(path) is None or others:
                found.problems.append(
                    f"{path}: README.md declares it as {split} data, but its name contradicts that. Correct one of them."
                )
    used = {path for files in found.files.values() for path in files}
    for name in names:
        if (path := os.path.join(found.path, name)) not in used:
            is_itself = name.lower() == "readme.md"
            found.skipped.setdefault(
                path, "documentation, not data" if is_itself else "README.md does not declare it as data"
            )
