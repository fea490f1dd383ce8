"""Splits and formats by the names of files, and the record of a folder's content."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import PurePath

from paddle_llm.core.errors import UserError

SUFFIXES = {".jsonl": "json", ".json": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".zst")
TRAIN, DEV, TEST, HELD_OUT = "train", "dev", "test", "held out"
SPLIT_NAMES = {
    TRAIN: ("train", "training"),
    DEV: ("dev", "valid", "validation", "val", "eval", "evaluation"),
    TEST: ("test", "testing"),
    HELD_OUT: ("holdout", "heldout"),
}
UNNAMED = "its name does not contain a split"
_CHINESE = {TRAIN: ("训练",), DEV: ("验证", "开发集", "评估"), TEST: ("测试",)}
_SPLIT_OF_WORD = {word: split for split, words in SPLIT_NAMES.items() for word in words}
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_HELD_OUT = re.compile(r"(?i)(?<![a-z])(held?|hold)[-_ .]?out(?![a-z])")
_ENDINGS = ("sets", "set", "data", "split", "s")
# Files beside the data that do not contain rows.
NO_ROWS = {
    "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json", "meta.json",
    "croissant.json", "package.json",
}  # fmt: skip
# Suffixes of unsupported data formats: such a file with the name of a split is an error.
OTHER_DATA = {
    ".arrow", ".feather", ".xlsx", ".xls", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".lz4", ".txt", ".xml", ".pkl", ".npy",
    ".npz", ".h5", ".hdf5", ".lance", ".avro", ".orc", ".db", ".sqlite", ".yaml", ".yml", ".tfrecord", ".bin", ".rar",
}  # fmt: skip


@dataclass
class DataFolder:
    """Content of a folder or pattern.

    Attributes:
        path: Folder or pattern as given.
        files: Paths by split, sorted by name.
        skipped: Reason by path, for files that do not belong to a split.
        unnamed: Whether no file has the name of a split, so that all are training data.
        notes: Messages about the files that are read.
        problems: Messages about mistakes that must be corrected before the files can be read.
    """

    path: str
    files: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unnamed: bool = False
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of(self, split: str) -> list[str]:
        """Return the files of a split."""
        return self.files.get(split, [])

    def check(self) -> DataFolder:
        """Return this object if it has no problems.

        Raises:
            UserError: If file names are ambiguous, or a split has an unsupported format.
        """
        if self.problems:
            raise UserError(self.problems[0])
        return self


def kind_of_file(path: str) -> str | None:
    """Return json, csv or parquet by the suffix, ignoring .gz and .zst; None for other files."""
    stem, suffix = os.path.splitext(path.lower())
    return SUFFIXES.get(os.path.splitext(stem)[1] if suffix in COMPRESSIONS else suffix)


def splits_of_name(name: str) -> set[str]:
    """Return the splits whose words the name of a file or folder contains."""
    stem = stem_of(name)
    found = {_SPLIT_OF_WORD[word] for word in map(base_word, WORD.findall(stem)) if word in _SPLIT_OF_WORD}
    found |= {split for split, words in _CHINESE.items() if any(word in stem for word in words)}
    found |= {HELD_OUT} if _HELD_OUT.search(stem) else set()
    return found - {HELD_OUT} if found & {DEV, TEST} else found


def stem_of(name: str) -> str:
    """Return a name without the suffixes of a data file; the name of a folder is unchanged."""
    stem, suffix = os.path.splitext(name)
    if suffix.lower() in COMPRESSIONS:
        stem, suffix = os.path.splitext(stem)
    return stem if suffix.lower() in SUFFIXES or suffix.lower() in OTHER_DATA else name


def base_word(word: str) -> str:
    """Return a word in lower case, without an ending such as "set" if the rest is the word of a split."""
    lower = word.lower()
    return next((lower.removesuffix(e) for e in _ENDINGS if lower.removesuffix(e) in _SPLIT_OF_WORD), lower)


def splits_of_path(relative: str) -> set[str]:
    """Return the splits of a file by its name and by the nearest parent folder with the word of a split."""
    parts = PurePath(relative).parts
    own = splits_of_name(parts[-1])
    above = next((splits for part in reversed(parts[:-1]) if (splits := splits_of_name(part))), set())
    return own | above if own and above else own or above
