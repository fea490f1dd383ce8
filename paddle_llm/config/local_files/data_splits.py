"""Assign the files of a folder to splits by their names, as `datasets` does. Files are not opened.

A word of the file name decides, or else a word of the nearest folder below the given one. A file whose name has a word of one
split is never read as another. Words are separated by characters that are not letters, as in `train-00000-of-00002.parquet`,
`my_test_1.jsonl` or `default/validation/0000.parquet`.

Differences from `datasets` 5: names are compared case-insensitively, `testset.json` and Chinese names are recognised, `eval` is the
validation split unless another file is, folder names and file names may be mixed, and names of two splits are refused.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from paddle_llm.config.local_files.readme_splits import declared_splits, sort_declared
from paddle_llm.config.local_files.split_names import (
    DEV,
    HELD_OUT,
    NO_ROWS,
    OTHER_DATA,
    SPLIT_NAMES,
    TEST,
    TRAIN,
    UNNAMED,
    WORD,
    DataFolder,
    base_word,
    kind_of_file,
    splits_of_path,
    stem_of,
)
from paddle_llm.core.artifacts import (
    ADAPTER_CONFIG,
    PDPARAMS,
    RESOLVED_CONFIG,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    TOKENIZER_CONFIG,
    TORCH_WEIGHTS,
    TRAINER_STATE,
    TRAINING_ARGS,
)
from paddle_llm.core.counts import counted

_EVAL = ("eval", "evaluation")
# Files that mark a folder below the data as the output of a training, or as a model or adapter.
_MODEL_FILES = {
    RESOLVED_CONFIG, TOKENIZER_CONFIG, ADAPTER_CONFIG, TRAINING_ARGS, TRAINER_STATE,
    SAFETENSORS, SAFETENSORS_INDEX, PDPARAMS, TORCH_WEIGHTS,
}  # fmt: skip
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def sort_into_splits(path: str) -> DataFolder:
    """Sort the files of a folder, or those that a pattern matches, into splits.

    Args:
        path: Folder, which is searched recursively, or a glob pattern.

    Returns:
        Splits. No file is opened except the README.md of a folder.
    """
    is_folder = os.path.isdir(path)
    base = path if is_folder else _fixed_part(path)
    found = DataFolder(path)
    names = sorted(_walk(path, found) if is_folder else (os.path.relpath(f, base) for f in _matches(path)))
    if is_folder and (problem := _download_cache(path, names)):
        found.problems.append(problem)
        return found
    if is_folder and (declared := declared_splits(path, names, found)) is not None:
        if declared.folder is not None:
            return _sort_declared_folder(found, declared.folder, names)
        sort_declared(found, declared.patterns, names)
        return found
    unnamed: list[str] = []
    for name in names:
        _sort_file(found, base, name, unnamed)
    _check_unread(found, base)
    if not found.files and not found.problems:
        _check_saved_to_disk(found, unnamed)
        found.unnamed = True
        found.files[TRAIN] = [os.path.join(base, name) for name in unnamed]
    else:
        found.skipped.update({os.path.join(base, name): UNNAMED for name in unnamed})
    _separate_eval(found, base)
    _check_shards(found, base)
    _check_formats(found)
    return found


def _sort_declared_folder(found: DataFolder, part: str, names: list[str]) -> DataFolder:
    """Sort the files of the folder that README.md declares as the data; all others are skipped."""
    inner = sort_into_splits(os.path.join(found.path, part))
    inner.path, inner.notes = found.path, [*found.notes, *inner.notes]
    inside = os.path.normpath(part).split(os.sep)
    for name in names:
        if list(PurePath(name).parts[: len(inside)]) != inside:
            inner.skipped[os.path.join(found.path, name)] = f"README.md declares {part} as the folder of the data"
    return inner


def _check_saved_to_disk(found: DataFolder, unnamed: list[str]) -> None:
    """Refuse a folder of `save_to_disk` without split names, whose rows are only in .arrow files."""
    arrow = sorted(path for path in found.skipped if path.lower().endswith(".arrow"))
    if arrow and not unnamed:
        remedy = _convert(arrow[0]).replace("['train']", "")
        found.problems.append(f"{arrow[0]} has an unsupported format. {remedy}, and give that file.")


def _download_cache(path: str, names: list[str]) -> str:
    """Return a message if a folder is a huggingface_hub cache, which contains all downloaded revisions; else ""."""
    revisions = sorted(
        {parts[1] for name in names if len(parts := PurePath(name).parts) > 2 and parts[0] == "snapshots"}
    )
    if not revisions or not any(os.path.isdir(os.path.join(path, beside)) for beside in ("blobs", "refs")):
        return ""
    example = os.path.join(path, "snapshots", revisions[0])
    return f"{path} is a download cache with {counted(len(revisions), 'revision')} of a data set. Give the folder of one, such as {example}."


def _sort_file(found: DataFolder, base: str, name: str, unnamed: list[str]) -> None:
    path = os.path.join(base, name)
    splits = splits_of_path(name)
    if not os.path.exists(path) and kind_of_file(name) is not None:
        found.problems.append(f"{path} is a link to a file that does not exist. Download the data again.")
    elif kind_of_file(name) is None or os.path.basename(name).lower() in NO_ROWS:
        is_data = os.path.splitext(name.lower())[1] in OTHER_DATA
        found.skipped[path] = "unsupported format" if is_data else "not a data file by its name or suffix"
    elif len(splits) > 1:
        found.problems.append(
            f"{path}: its name contains words of the splits {' and '.join(sorted(splits))}. Rename it, or give one file as the data."
        )
    elif splits == {HELD_OUT}:
        found.skipped[path] = "held-out data by its name"
        found.files.setdefault(HELD_OUT, []).append(path)
    elif splits:
        found.files.setdefault(splits.pop(), []).append(path)
    else:
        unnamed.append(name)


def _check_formats(found: DataFolder) -> None:
    """Refuse files of a split with the same name in several formats, which are copies of the same rows; report several formats."""
    for split, files in found.files.items():
        by_stem: dict[str, dict[str, str]] = {}
        for path in files:
            by_stem.setdefault(stem_of(os.path.basename(path)), {})[str(kind_of_file(path))] = path
        copies = next((list(kinds.values()) for kinds in by_stem.values() if len(kinds) > 1), None)
        if copies and split != HELD_OUT:
            found.problems.append(
                f"{' and '.join(copies)} have the same name in several formats and seem to contain the same rows. "
                "Give a pattern for one format, or remove the others."
            )
        kinds = sorted({str(kind_of_file(path)) for path in files})
        if len(kinds) > 1 and not copies:
            found.notes.append(
                f"{found.path}: the {split} data has several formats, and all are read: {', '.join(kinds)}"
            )


def _check_unread(found: DataFolder, base: str) -> None:
    """Refuse a split whose files all have an unsupported format."""
    for path in sorted(found.skipped):
        splits = splits_of_path(os.path.relpath(path, base))
        is_data = os.path.splitext(path.lower())[1] in OTHER_DATA and splits and splits != {HELD_OUT}
        if is_data and not all(found.of(split) for split in splits):
            found.problems.append(
                f"{path} is a file of the split {' and '.join(sorted(splits))} with an unsupported format. {_convert(path)}, or move it "
                "out of the folder."
            )


def _convert(path: str) -> str:
    """Return how to convert a file to a supported format."""
    if path.lower().endswith(".arrow"):
        return "Write it as parquet with datasets: load_from_disk(FOLDER)['train'].to_parquet('train.parquet')"
    return "Convert it to jsonl or parquet (datasets: load_dataset(...).to_parquet)"


def _walk(folder: str, found: DataFolder) -> Iterator[str]:
    """Yield the paths of all files below a folder, relative to it, without hidden files and folders and without model folders."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders[:] = []
            continue
        seen.add(real)
        if root != folder and not _MODEL_FILES.isdisjoint(names):
            found.skipped[root] = "output of a training, model or adapter"
            folders[:] = []
            continue
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        paths = (os.path.join(root, name) for name in names if not name.startswith("."))
        # A link to a missing file is a file of the data that cannot be read: _sort_file refuses it.
        yield from (os.path.relpath(path, folder) for path in paths if os.path.isfile(path) or os.path.islink(path))


def _matches(pattern: str) -> list[str]:
    return [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]


def _fixed_part(pattern: str) -> str:
    """Return the folder above the first component of a pattern that has a wildcard."""
    parts = PurePath(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return os.path.join(*parts[:fixed]) if parts[:fixed] else "."


def _separate_eval(found: DataFolder, base: str) -> None:
    """Treat `eval` as test, as datasets does, if another file is the validation split."""

    def is_eval(path: str) -> bool:
        words = {base_word(word) for part in Path(os.path.relpath(path, base)).parts for word in WORD.findall(part)}
        return bool(words & set(_EVAL)) and not words & (set(SPLIT_NAMES[DEV]) - set(_EVAL))

    evals = [path for path in found.of(DEV) if is_eval(path)]
    if evals and len(evals) < len(found.of(DEV)):
        found.files[DEV] = [path for path in found.of(DEV) if path not in evals]
        found.files[TEST] = sorted([*found.of(TEST), *evals])


def _check_shards(found: DataFolder, base: str) -> None:
    """Refuse separate sets of one split in data/, such as train_sft-* beside train_gen-*; report incomplete sets."""
    for split, files in found.files.items():
        in_data = [os.path.basename(path) for path in files if os.path.relpath(os.path.dirname(path), base) == "data"]
        stems = sorted({_SHARD.split(name)[0] for name in in_data if _SHARD.search(name)})
        if len(stems) > 1 and split != HELD_OUT:
            patterns = " or ".join(os.path.join(base, "data", f"{stem}-*") for stem in stems)
            found.problems.append(
                f"{found.path}: several sets of files are {split} data: {', '.join(stems)}. Give a pattern for one of them: {patterns}"
            )
    sets: Counter[tuple[str, str, int]] = Counter()
    for path in (path for files in found.files.values() for path in files):
        if match := re.search(r"^(.*)-\d{5}-of-(\d{5})(.*)$", path):
            sets[match[1], match[3], int(match[2])] += 1
    for (stem, suffix, expected), count in sorted(sets.items()):
        if count < expected:
            found.notes.append(f"{stem}-*{suffix}: only {count} of {expected} files exist")
