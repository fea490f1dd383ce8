"""Finds the files of a split in a folder or by a pattern, or takes one named file."""

from __future__ import annotations

import glob
import os
from collections import Counter

from paddle_llm.config.local_files.data_splits import sort_into_splits
from paddle_llm.config.local_files.split_names import (
    COMPRESSIONS,
    DEV,
    HELD_OUT,
    SUFFIXES,
    TEST,
    TRAIN,
    UNNAMED,
    DataFolder,
    splits_of_name,
)
from paddle_llm.core.console import say_once
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.dataset_info import FILE, find_entry

DEFAULT_DATA = "data"
_SHOWN = 5


def find_files(path: str | None, split: str = TRAIN, flag: str = "--dataset_name_or_path") -> list[str]:
    """Return the files of a split. A single named file is training data; in a folder or pattern, file names decide.

    Args:
        path: File, folder or pattern; None: ./data, the default of PaddleNLP's first scripts.
        split: "train", "dev" or "test".
        flag: Name of the flag that gave `path`, for messages.

    Returns:
        Sorted paths; empty if there are none for dev or test.

    Raises:
        UserError: If the names are ambiguous, or there is no file for train.
    """
    searched = path or DEFAULT_DATA
    if os.path.isfile(searched):
        return [_named_file(searched)] if split == TRAIN else []
    found = data_folder(searched)
    _report(found)
    files = found.check().of(split)
    if not files and split == TRAIN:
        raise UserError(_no_files(path, searched, flag, found))
    return files


def data_folder(path: str) -> DataFolder:
    """Return the files of a folder or pattern by split, without preference data listed in dataset_info.json."""
    found = sort_into_splits(path)
    for files in found.files.values():
        for file in list(files):
            info = find_entry(file)
            if info is not None and info.preference:
                files.remove(file)
                found.skipped[file] = f"preference data, according to {info.where}"
    return found


def _named_file(path: str) -> str:
    if os.path.basename(path) == FILE:
        raise UserError(f"{path}: it describes data and has no rows. Use the file that it names, or the folder.")
    info = find_entry(path)
    if info is not None and info.preference:
        raise UserError(
            f"{path}: preference data, according to {info.where}: it contains answers to avoid, but fine-tuning trains on "
            "every answer. Write the preferred answers to a separate file."
        )
    others = splits_of_name(os.path.basename(path)) - {TRAIN}
    if others:
        say_once(f"{path}: used for training as requested, although its name contains {' and '.join(sorted(others))}")
    return path


def describe(found: DataFolder) -> list[str]:
    """Return lines for a report: the files of each split, and the skipped files with the reasons."""
    lines = []
    for split in (TRAIN, DEV, TEST):
        for file in found.of(split):
            lines.append(f"{split}: {file}")
    return [*lines, *(f"skipped: {file} ({reason})" for file, reason in sorted(found.skipped.items()))]


def _report(found: DataFolder) -> None:
    counts = ", ".join(
        f"{split}: {counted(len(found.of(split)), 'file')}" for split in (TRAIN, DEV, TEST) if found.of(split)
    )
    if found.unnamed and found.of(TRAIN):
        say_once(
            f"{found.path}: no file name contains the name of a split; all are used for train ({counted(len(found.of(TRAIN)), 'file')})"
        )
    elif counts:
        say_once(f"{found.path}: {counts}")
    for note in found.notes:
        say_once(note)
    reasons = Counter(found.skipped.values())
    for reason, count in reasons.items():
        names = [
            os.path.relpath(file, found.path) if os.path.isdir(found.path) else file
            for file, r in found.skipped.items()
            if r == reason
        ]
        more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
        say_once(f"{found.path}: skipped: {', '.join(names[:_SHOWN])}{more}: {reason}")


def _no_files(path: str | None, searched: str, flag: str, found: DataFolder) -> str:
    form = f"a file ({', '.join(SUFFIXES)}, also with {' or '.join(COMPRESSIONS)}) or a folder with train.json and dev.json"
    if path is None:
        return f"{flag} is not set and ./{DEFAULT_DATA}/train.json does not exist. Set {flag} to {form}."
    others = [file for split in (DEV, TEST, HELD_OUT) for file in found.of(split)]
    if os.path.isdir(searched) or others or found.skipped:
        seen = "; ".join(describe(found)[:_SHOWN])
        unnamed = sum(reason == UNNAMED for reason in found.skipped.values())
        remedy = f"Use {form}."
        if unnamed:
            remedy = (
                "Name a file explicitly, or rename the training files so that their names contain train "
                f"({unnamed} names contain no split)."
            )
        return f"{flag} {searched}: no training data in the folder{f' ({seen})' if seen else ''}. {remedy}"
    missing = "no file matches" if glob.has_magic(searched) else "no such file or folder"
    return f"{flag} {searched}: {missing}. Use {form}."
