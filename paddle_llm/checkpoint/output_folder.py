"""The output folder of a run before it starts: may it be used, and does the run continue one that is there?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from paddle_llm.checkpoint import folder as checkpoints
from paddle_llm.checkpoint.output_lock import RUN_LOCK
from paddle_llm.core.artifacts import METRICS, RESOLVED_CONFIG
from paddle_llm.core.errors import UserError

# What a run writes beside its checkpoints; `--overwrite_output_dir` removes both and nothing else.
_WRITTEN = (
    *(METRICS, "visualdl", RESOLVED_CONFIG, "model", "adapter"),
    *("generated-[0-9]*.jsonl", "generated-test-[0-9]*.jsonl"),
    *("model.saving", "adapter.saving", ".model.replaced-*", ".adapter.replaced-*"),  # of killed processes
)


def choose_start(
    output_dir: str, *, do_train: bool, overwrite: bool, resume: str | bool | None, read: Iterable[str | None] = ()
) -> tuple[Path | None, list[str]]:
    """Decide where a run starts from. Changes nothing: the run may still fail for another mistake. Called by one process.

    Args:
        resume: a checkpoint folder, True or None (the newest complete one, if there is any), or False (never).
        read: folders that the run reads, such as its model.

    Returns:
        The checkpoint to continue from (None: from the beginning) and lines to say.

    Raises:
        UserError: not writable; not empty and neither continued nor overwritten; the named checkpoint is incomplete; what
            would be overwritten is read.
    """
    output = Path(output_dir)
    check_writable(output)
    if isinstance(resume, str):
        checkpoints.read_manifest(resume)
        return Path(resume), []
    if not do_train or (overwrite and resume is not True):
        if do_train:
            _check_spares(output, read)
        return None, []
    newest, said = (None, []) if resume is False else checkpoints.newest_complete(output)
    if newest is not None:
        return newest, [*said, f"continuing from {newest} (start anew: --overwrite_output_dir)"]
    if resume is True:
        raise UserError(f"--resume_from_checkpoint: there is no complete checkpoint in {output}. " + " ".join(said))
    entries = output.iterdir() if output.exists() else ()
    in_the_way = sorted(
        entry.name for entry in entries if not _is_launcher_log(entry) and not entry.name.startswith(RUN_LOCK)
    )
    if in_the_way and all(_is_of_a_young_run(name) for name in in_the_way):
        return None, [*said, f"{output} holds a run that ended before its first checkpoint: it starts anew"]
    if in_the_way:
        raise UserError(
            f"--output_dir {output} is not empty ({', '.join(in_the_way[:5])}{', ...' if len(in_the_way) > 5 else ''}) and "
            "has no complete checkpoint to continue from: name another folder, or give --overwrite_output_dir."
            + "".join(f" {line}." for line in said)
        )
    return None, said


def open_output_folder(output_dir: str, *, do_train: bool, overwrite: bool, start: Path | None) -> list[str]:
    """Make the folder ready for a run that is about to begin at `start`. Called by one process; returns lines to say."""
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if not do_train:
        return []
    if start is None:
        if overwrite:
            _remove_ours(output)
        checkpoints.clear_staging(output)
        return []
    checkpoints.clear_staging(output)
    return [
        f"{old} is of the course that this run leaves: kept as {kept.name}"
        for old, kept in checkpoints.set_aside_newer(output, start)
    ]


def check_writable(output: Path) -> None:
    """Write a file there, and leave nothing behind.

    Raises:
        UserError: If that fails.
    """
    absent = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
        for folder in absent:
            folder.rmdir()
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--output_dir {output} is, or is below, a file or a broken link. Name a folder.") from None
    except OSError as error:
        raise UserError(
            f"--output_dir {output} cannot be written: {error.strerror or error}. Name another folder."
        ) from None


def _check_spares(output: Path, read: Iterable[str | None]) -> None:
    """Raise UserError where `--overwrite_output_dir` would remove what the run reads: of a job that ends early nothing would
    be left."""
    for folder in filter(None, read):
        place = Path(folder).resolve()
        for path in map(Path.resolve, _ours(output)):
            if path == place or path in place.parents:
                raise UserError(
                    f"--overwrite_output_dir would remove {path}, and {folder} is read for this run: name another --output_dir."
                )


def _remove_ours(output: Path) -> None:
    checkpoints.clear_staging(output)
    for path in _ours(output):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _ours(output: Path) -> list[Path]:
    """What earlier runs have written there."""
    folders = [path for _, path in checkpoints.list_checkpoints(output)]
    written = [path for pattern in (*_WRITTEN, f"{checkpoints.LEFT}*") for path in output.glob(pattern)]
    return folders + written


def _is_of_a_young_run(name: str) -> bool:
    """What a run has written before its first checkpoint; a new start writes each of it anew."""
    return name in (METRICS, "visualdl", RESOLVED_CONFIG) or name.startswith(".saving-")


def _is_launcher_log(entry: Path) -> bool:
    """`--log_dir` of the launcher may lie inside the output folder and is written before we start."""
    return entry.is_dir() and any(entry.glob("workerlog.*"))
