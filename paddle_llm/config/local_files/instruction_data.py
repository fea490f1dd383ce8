"""Find instruction data on this machine by names only; `data/instructions/files.py` reads the files."""

from __future__ import annotations

import difflib
import glob
from pathlib import Path

from paddle_llm.config.local_files.data_splits import sort_into_splits
from paddle_llm.config.local_files.split_names import SPLIT_NAMES, TRAIN

CHAT_TEMPLATES = (
    "auto",
    "default",
    "llama2",
    "llama3",
    "chatglm",
    "chatglm2",
    "chatglm3",
    "bloomz",
    "alpaca",
    "chatml",
    "jinja",
)  # fmt: skip


def path_exists(path: str) -> bool:
    """Return whether a path is a file, a folder, or a pattern that matches some."""
    return Path(path).expanduser().exists() or bool(glob.glob(str(Path(path).expanduser()), recursive=True))


def blend_of(text: str) -> list[str]:
    """Return the paths of a blend such as `"0.3 a.jsonl 0.7 b/"`, or `text` as the only path; [] if it is malformed."""
    words = text.split()
    if len(words) < 2:
        return words
    numbers = [word.replace(".", "", 1).isdigit() for word in words]
    if any(numbers[::2]):
        return words[1::2] if len(words) % 2 == 0 and all(numbers[::2]) else []
    return [text]


def has_split(path: str, split: str) -> bool:
    """Return whether a path contains a split: a folder or pattern by the names of its files; a file contains train only.

    Raises:
        UserError: If the names in a folder are ambiguous.
    """
    expanded = str(Path(path).expanduser())
    if Path(expanded).is_file():
        return split == TRAIN
    return bool(sort_into_splits(expanded).check().of(split))


def did_you_mean(path: str, *wanted: str) -> str:
    """Return " Did you mean X?", or "" if nothing is similar.

    Candidates are the files of a folder whose names resemble a split in `wanted`; for other paths `wanted`, or without it the
    neighbours of `path`.
    """
    expanded = Path(path).expanduser()
    if expanded.is_dir():
        stems = {_stem(one): one.name for one in expanded.iterdir()}
        names = [name for split in wanted for name in SPLIT_NAMES.get(split, ())]
        close = [stems[match] for name in names for match in difflib.get_close_matches(name, stems, 1, 0.75)]
    elif wanted:
        close = difflib.get_close_matches(path, wanted, 1)
    elif expanded.parent.is_dir():
        close = difflib.get_close_matches(expanded.name, [one.name for one in expanded.parent.iterdir()], 1, 0.75)
    else:
        close = []
    return f" Did you mean {close[0]}?" if close else ""


def _stem(path: Path) -> str:
    return path.name.split(".")[0]
