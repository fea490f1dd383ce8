"""Finds the files of a split: in a folder, behind a pattern, or one file by its name."""

from __future__ import annotations

import glob
import os
from collections import Counter

from paddle_llm.config.local_files.data_splits import survey
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
from paddle_llm.data.instructions.dataset_info import FILE, info_of

DEFAULT_DATA = "data"
_SHOWN = 5


def find_files(path: str | None, split: str = TRAIN, flag: str = "--dataset_name_or_path") -> list[str]:
    """The files of a split. One file that is named is training data; in a folder, and behind a pattern, names decide.

    Args:
        path: A file, folder or pattern; None: ./data, where PaddleNLP's first scripts looked.
        split: train, dev or test.
        flag: The flag that gave `path`, for messages.

    Returns:
        Sorted paths; empty without any for dev or test.

    Raises:
        UserError: If the names are ambiguous, or there is nothing to read for train.
    """
    asked = path or DEFAULT_DATA
    if os.path.isfile(asked):
        return [_named_file(asked)] if split == TRAIN else []
    found = data_folder(asked)
    _report(found)
    files = found.check().of(split)
    if not files and split == TRAIN:
        raise UserError(_nothing(path, asked, flag, found))
    return files


def data_folder(path: str) -> DataFolder:
    """The files of a folder or pattern by split, without the preference data that dataset_info.json names."""
    found = survey(path)
    for files in found.files.values():
        for file in list(files):
            info = info_of(file)
            if info is not None and info.preference:
                files.remove(file)
                found.left_out[file] = f"{info.where} says that it is preference data"
    return found


def _named_file(path: str) -> str:
    if os.path.basename(path) == FILE:
        raise UserError(f"{path}: it describes data and holds no rows. Give the file that it names, or the folder.")
    info = info_of(path)
    if info is not None and info.preference:
        raise UserError(
            f"{path}: {info.where} says that it is preference data: some of its answers are to be avoided, but fine-tuning learns every "
            "answer. Write the preferred answers to a file of their own."
        )
    others = splits_of_name(os.path.basename(path)) - {TRAIN}
    if others:
        say_once(f"{path}: read as it is named itself, although its name says {' and '.join(sorted(others))}")
    return path


def describe(found: DataFolder) -> list[str]:
    """Lines for a report: the files of each split, and the files that are left out with the reasons."""
    lines = []
    for split in (TRAIN, DEV, TEST):
        for file in found.of(split):
            lines.append(f"{split}: {file}")
    return [*lines, *(f"left out: {file} ({reason})" for file, reason in sorted(found.left_out.items()))]


def _report(found: DataFolder) -> None:
    counts = ", ".join(
        f"{split}: {counted(len(found.of(split)), 'file')}" for split in (TRAIN, DEV, TEST) if found.of(split)
    )
    if found.unnamed and found.of(TRAIN):
        say_once(
            f"{found.path}: no file has the name of a split; all are read as train ({counted(len(found.of(TRAIN)), 'file')})"
        )
    elif counts:
        say_once(f"{found.path}: {counts}")
    for note in found.notes:
        say_once(note)
    reasons = Counter(found.left_out.values())
    for reason, count in reasons.items():
        names = [
            os.path.relpath(file, found.path) if os.path.isdir(found.path) else file
            for file, r in found.left_out.items()
            if r == reason
        ]
        more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
        say_once(f"{found.path}: left out: {', '.join(names[:_SHOWN])}{more}: {reason}")


def _nothing(path: str | None, asked: str, flag: str, found: DataFolder) -> str:
    form = f"a file ({', '.join(SUFFIXES)}, also with {' or '.join(COMPRESSIONS)}) or a folder with train.json and dev.json"
    if path is None:
        return f"no data: {flag} is not given and there is no ./{DEFAULT_DATA}/train.json. Name {form} with {flag}."
    others = [file for split in (DEV, TEST, HELD_OUT) for file in found.of(split)]
    if os.path.isdir(asked) or others or found.left_out:
        seen = "; ".join(line for line in [*describe(found)][:_SHOWN])
        unnamed = sum(reason == UNNAMED for reason in found.left_out.values())
        remedy = (
            f"Name a file itself, or rename the training files after train ({unnamed} have no split's name)."
            if unnamed
            else ""
        )
        return f"{flag} {asked}: the folder holds no training data{f' ({seen})' if seen else ''}. {remedy or f'Give {form}.'}"
    missing = "no file matches" if glob.has_magic(asked) else "no such file or folder"
    return f"{flag} {asked}: {missing}. Give {form}."
