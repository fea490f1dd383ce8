"""Which files of a folder are which split, by their names, as `datasets` finds them; files are not opened.

A word of the file name decides, or else a word of the nearest folder below the one that was given. A file whose name has a
word of one split is never read as another. Words are separated by characters that are not letters, as in
`train-00000-of-00002.parquet`, `my_test_1.jsonl` or `default/validation/0000.parquet`.

Differences from `datasets` 5: names are compared without case, `testset.json` and Chinese names are recognised, `eval` is the
validation split unless another file is, folder names and file names may be mixed, and names of two splits are refused.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from paddle_llm.config.errors import UserError

SUFFIXES = {".jsonl": "json", ".json": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".zst")
TRAIN, DEV, TEST, HELD_OUT = "train", "dev", "test", "held out"
SPLIT_NAMES = {
    TRAIN: ("train", "training"),
    DEV: ("dev", "valid", "validation", "val", "eval", "evaluation"),
    TEST: ("test", "testing"),
    HELD_OUT: ("holdout", "heldout"),
}
UNNAMED = "its name names no split"
_EVAL = ("eval", "evaluation")
_CHINESE = {TRAIN: ("训练",), DEV: ("验证", "开发集", "评估"), TEST: ("测试",)}
_SPLIT_OF_WORD = {word: split for split, words in SPLIT_NAMES.items() for word in words}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_HELD_OUT = re.compile(r"(?i)(?<![a-z])(held?|hold)[-_ .]?out(?![a-z])")
_ENDINGS = ("sets", "set", "data", "split", "s")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
# Files beside the data that hold no rows.
_NO_ROWS = {
    "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json", "meta.json",
    "croissant.json", "package.json",
}  # fmt: skip
# Suffixes of data that is not read: a file of these with the name of a split is an error, not a file beside the data.
_OTHER_DATA = {
    ".arrow", ".feather", ".xlsx", ".xls", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".lz4", ".txt", ".xml", ".pkl", ".npy",
    ".npz", ".h5", ".hdf5", ".lance", ".avro", ".orc", ".db", ".sqlite", ".yaml", ".yml", ".tfrecord", ".bin", ".rar",
}  # fmt: skip


@dataclass
class DataFolder:
    """What a folder or pattern holds.

    Attributes:
        path: The folder or pattern as given.
        files: Paths by split, in order of their names.
        left_out: Reasons by path of the files that are in no split.
        unnamed: Whether no file has the name of a split, so that all are training data.
        notes: What to report about the files that are read.
        problems: What must be corrected before the files can be read, one message each.
    """

    path: str
    files: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unnamed: bool = False
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of(self, split: str) -> list[str]:
        """The files of a split; empty without any."""
        return self.files.get(split, [])

    def check(self) -> DataFolder:
        """Raise the first problem.

        Raises:
            UserError: If the names of files are ambiguous, or a split is stored in a format that is not read.
        """
        if self.problems:
            raise UserError(self.problems[0])
        return self


def kind_of_file(path: str) -> str | None:
    """json, csv or parquet by the suffix, below .gz or .zst; None for other files."""
    stem, suffix = os.path.splitext(path.lower())
    return SUFFIXES.get(os.path.splitext(stem)[1] if suffix in COMPRESSIONS else suffix)


def splits_of_name(name: str) -> set[str]:
    """The splits whose words the name of a file or folder contains."""
    stem = _stem(name)
    found = {_SPLIT_OF_WORD[word] for word in map(_base_word, _WORD.findall(stem)) if word in _SPLIT_OF_WORD}
    found |= {split for split, words in _CHINESE.items() if any(word in stem for word in words)}
    found |= {HELD_OUT} if _HELD_OUT.search(stem) else set()
    return found - {HELD_OUT} if found & {DEV, TEST} else found


def _stem(name: str) -> str:
    """A name without the suffixes of a data file; a folder's name as it is."""
    stem, suffix = os.path.splitext(name)
    if suffix.lower() in COMPRESSIONS:
        stem, suffix = os.path.splitext(stem)
    return stem if suffix.lower() in SUFFIXES or suffix.lower() in _OTHER_DATA else name


def _base_word(word: str) -> str:
    lower = word.lower()
    return next((lower.removesuffix(e) for e in _ENDINGS if lower.removesuffix(e) in _SPLIT_OF_WORD), lower)


def survey(path: str) -> DataFolder:
    """Sort the files of a folder, or those that a pattern matches, into splits.

    Args:
        path: A folder, which is searched with all folders below, or a glob pattern.

    Returns:
        The splits; no file is opened except the README of a folder.
    """
    is_folder = os.path.isdir(path)
    base = path if is_folder else _fixed_part(path)
    names = sorted(_walk(path)) if is_folder else sorted(os.path.relpath(f, base) for f in _matches(path))
    found = DataFolder(path)
    if is_folder and (problem := _download_cache(path, names)):
        found.problems.append(problem)
        return found
    if is_folder and (declared := _declared(path, names, found)) is not None:
        _sort_declared(found, declared, names)
        return found
    unnamed: list[str] = []
    for name in names:
        _sort_file(found, base, name, unnamed)
    if not found.files and not found.problems:
        _check_saved_to_disk(found, unnamed)
        found.unnamed = True
        found.files[TRAIN] = [os.path.join(base, name) for name in unnamed]
    else:
        found.left_out.update({os.path.join(base, name): UNNAMED for name in unnamed})
    _separate_eval(found, base)
    _check_shards(found, base)
    return found


def _check_saved_to_disk(found: DataFolder, unnamed: list[str]) -> None:
    """Refuse a folder of `save_to_disk` without names of splits, whose rows are in .arrow files only."""
    arrow = sorted(path for path in found.left_out if path.lower().endswith(".arrow"))
    if arrow and not unnamed:
        remedy = _convert(arrow[0]).replace("['train']", "")
        found.problems.append(f"{arrow[0]}: a format that is not read. {remedy}, and name that file.")


def _download_cache(path: str, names: list[str]) -> str:
    """The message for a folder of huggingface_hub's cache, which holds every revision that was downloaded; else empty."""
    revisions = sorted(
        {parts[1] for name in names if len(parts := PurePath(name).parts) > 2 and parts[0] == "snapshots"}
    )
    if not revisions or not any(os.path.isdir(os.path.join(path, beside)) for beside in ("blobs", "refs")):
        return ""
    example = os.path.join(path, "snapshots", revisions[0])
    return f"{path}: a download cache with {len(revisions)} revisions of a data set. Name the folder of one, such as {example}."


def _sort_file(found: DataFolder, base: str, name: str, unnamed: list[str]) -> None:
    path = os.path.join(base, name)
    splits = splits_of_path(name)
    if kind_of_file(name) is None or os.path.basename(name).lower() in _NO_ROWS:
        found.left_out[path] = "holds no rows by its name or suffix"
        if splits and splits != {HELD_OUT} and os.path.splitext(name.lower())[1] in _OTHER_DATA:
            found.problems.append(
                f"{path}: a file of the split {' and '.join(sorted(splits))} in a format that is not read. {_convert(path)}, or move it "
                "out of the folder."
            )
    elif len(splits) > 1:
        found.problems.append(
            f"{path}: the name has words of the splits {' and '.join(sorted(splits))}. Rename it after one, or name one file as the data."
        )
    elif splits == {HELD_OUT}:
        found.left_out[path] = "its name marks held-out data"
        found.files.setdefault(HELD_OUT, []).append(path)
    elif splits:
        found.files.setdefault(splits.pop(), []).append(path)
    else:
        unnamed.append(name)


def _convert(path: str) -> str:
    """How to write a file that is not read in a format that is."""
    if path.lower().endswith(".arrow"):
        return "Write it as parquet with datasets: load_from_disk(FOLDER)['train'].to_parquet('train.parquet')"
    return "Convert it to jsonl or parquet (datasets: load_dataset(...).to_parquet)"


def splits_of_path(relative: str) -> set[str]:
    """The splits that a file belongs to by its name and, above it, the nearest folder with a split's word."""
    parts = PurePath(relative).parts
    own = splits_of_name(parts[-1])
    above = next((splits for part in reversed(parts[:-1]) if (splits := splits_of_name(part))), set())
    return own | above if own and above else own or above


def _walk(folder: str) -> Iterator[str]:
    """Paths of all files below a folder, relative to it, without hidden files and folders."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        paths = (os.path.join(root, name) for name in names if not name.startswith("."))
        yield from (os.path.relpath(path, folder) for path in paths if os.path.isfile(path))


def _matches(pattern: str) -> list[str]:
    return [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]


def _fixed_part(pattern: str) -> str:
    """The folder above the first component of a pattern with a wildcard."""
    parts = PurePath(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return os.path.join(*parts[:fixed]) if parts[:fixed] else "."


def _separate_eval(found: DataFolder, base: str) -> None:
    """Read `eval` as test, as datasets does, where another file is the validation split."""

    def is_eval(path: str) -> bool:
        words = {_base_word(word) for part in Path(os.path.relpath(path, base)).parts for word in _WORD.findall(part)}
        return bool(words & set(_EVAL)) and not words & (set(SPLIT_NAMES[DEV]) - set(_EVAL))

    evals = [path for path in found.of(DEV) if is_eval(path)]
    if evals and len(evals) < len(found.of(DEV)):
        found.files[DEV] = [path for path in found.of(DEV) if path not in evals]
        found.files[TEST] = sorted([*found.of(TEST), *evals])


def _check_shards(found: DataFolder, base: str) -> None:
    """Refuse splits of their own in data/, such as train_sft-00000-of-00001 beside train_gen-...; note incomplete sets."""
    for split, files in found.files.items():
        in_data = [os.path.basename(path) for path in files if os.path.relpath(os.path.dirname(path), base) == "data"]
        stems = sorted({_SHARD.split(name)[0] for name in in_data if _SHARD.search(name)})
        if len(stems) > 1 and split != HELD_OUT:
            patterns = " or ".join(os.path.join(base, "data", f"{stem}-*") for stem in stems)
            found.problems.append(
                f"{found.path}: several sets of files are {split} data: {', '.join(stems)}. Name one by a pattern: {patterns}"
            )
    sets: Counter[tuple[str, str, int]] = Counter()
    for path in (path for files in found.files.values() for path in files):
        if match := re.search(r"^(.*)-\d{5}-of-(\d{5})(.*)$", path):
            sets[match[1], match[3], int(match[2])] += 1
    for (stem, suffix, expected), count in sorted(sets.items()):
        if count < expected:
            found.notes.append(f"{stem}-*{suffix}: {count} of {expected} files are present")


# ---- splits declared in the README of a folder from the Hub ----------------------------------------------------------


def _declared(folder: str, names: list[str], found: DataFolder) -> dict[str, list[str]] | None:
    """Patterns by split from the metadata of README.md (`configs`, as datasets reads it); None without any."""
    readme = Path(folder, "README.md")
    configs = _metadata(readme).get("configs") if "README.md" in names else None
    configs = [c for c in configs if isinstance(c, dict) and c.get("data_files")] if isinstance(configs, list) else []
    chosen = (
        configs if len(configs) < 2 else [c for c in configs if c.get("default") or c.get("config_name") == "default"]
    )
    if not configs:
        return None
    if len(chosen) != 1:
        known = ", ".join(str(c.get("config_name")) for c in configs)
        found.problems.append(
            f"{readme}: the data set has several configurations: {known}. Name the folder or the files of one by a pattern."
        )
        return {}
    entries = chosen[0]["data_files"]
    entries = entries if isinstance(entries, list) else [{"split": "train", "path": entries}]
    patterns: dict[str, list[str]] = {}
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
        paths = entry.get("path")
        patterns.setdefault(str(entry.get("split")), []).extend(map(str, paths if isinstance(paths, list) else [paths]))
    return patterns


def _metadata(readme: Path) -> dict[str, object]:
    import yaml  # type: ignore[import-untyped]

    try:
        text = readme.read_text(encoding="utf-8-sig", errors="replace")
        match = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        found = yaml.safe_load(match[1]) if match else None
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _sort_declared(found: DataFolder, declared: dict[str, list[str]], names: list[str]) -> None:
    by_split: dict[str, list[str]] = {}
    for name, patterns in declared.items():
        splits = splits_of_name(name)
        if len(splits) != 1:
            for pattern in patterns:
                found.left_out[pattern] = f"README.md declares it as the split {name}"
            continue
        by_split.setdefault(next(iter(splits)), []).append(name)
    for split, declared_names in by_split.items():
        if len(declared_names) > 1:
            found.problems.append(
                f"{found.path}: README.md declares several splits of {split} data: {', '.join(declared_names)}. Name the files of one "
                "by a pattern."
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
                    f"{path}: README.md declares it as {split} data, which its name contradicts. Correct one of them."
                )
    used = {path for files in found.files.values() for path in files}
    for name in names:
        if (path := os.path.join(found.path, name)) not in used:
            found.left_out.setdefault(path, "README.md does not declare it as data")
