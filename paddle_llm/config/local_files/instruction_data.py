"""Where instruction data is on this machine, found by names only; `data/instructions/files.py` reads the files."""

from __future__ import annotations

import difflib
import glob
from pathlib import Path

from paddle_llm.config.local_files.data_splits import survey
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


def is_there(path: str) -> bool:
    """A file, a folder, or a pattern that matches some."""
    return Path(path).expanduser().exists() or bool(glob.glob(str(Path(path).expanduser()), recursive=True))


def blend_of(text: str) -> list[str]:
    """The paths of `"0.3 a.jsonl 0.7 b/"`, or the one path that `text` is; [] where it is neither."""
    words = text.split()
    if len(words) < 2:
        return words
    numbers = [word.replace(".", "", 1).isdigit() for word in words]
    if any(numbers[::2]):
        return words[1::2] if len(words) % 2 == 0 and all(numbers[::2]) else []
    return [text]


def has_split(path: str, split: str) -> bool:
    """Whether a path holds a split: a folder or pattern by the names of its files; one file holds train only.

    Raises:
        UserError: If the names in a folder are ambiguous.
    """
    place = str(Path(path).expanduser())
    if Path(place).is_file():
        return split == TRAIN
    return bool(survey(place).check().of(split))


def near(path: str, *wanted: str) -> str:
    """ " Did you mean X?": what stands beside `path` and is spelled like it; of a folder, what in it is spelled like `wanted`;
    of a word, which of `wanted`. "" where nothing is."""
    place = Path(path).expanduser()
    if place.is_dir():
        stems = {_stem(one): one.name for one in place.iterdir()}
        names = [name for split in wanted for name in SPLIT_NAMES.get(split, ())]
        close = [stems[match] for name in names for match in difflib.get_close_matches(name, stems, 1, 0.75)]
    elif wanted:
        close = difflib.get_close_matches(path, wanted, 1)
    elif place.parent.is_dir():
        close = difflib.get_close_matches(place.name, [one.name for one in place.parent.iterdir()], 1, 0.75)
    else:
        close = []
    return f" Did you mean {close[0]}?" if close else ""


def _stem(path: Path) -> str:
    return path.name.split(".")[0]
