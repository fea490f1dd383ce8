"""Decide before a run starts whether its output folder can be used and from which checkpoint it resumes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from paddle_llm.checkpoint import folder as checkpoints
from paddle_llm.checkpoint.output_lock import RUN_LOCK
from paddle_llm.core.artifacts import METRICS, RESOLVED_CONFIG, ROLLBACKS
from paddle_llm.core.errors import UserError

_MAX_SHOWN = 5  # entries of a folder in a message
# Files that a run writes beside its checkpoints; `--overwrite_output_dir` removes both and nothing else.
_FILES_OF_A_RUN = (
    *(METRICS, "visualdl", RESOLVED_CONFIG, ROLLBACKS, "model", "adapter"),
    *("generated-[0-9]*.jsonl", "generated-test-[0-9]*.jsonl"),
    *("model.saving", "adapter.saving", ".model.replaced-*", ".adapter.replaced-*"),  # of killed processes
)
# Temporary files and folders of killed processes; the next run removes them.
_LEFTOVERS = (
    *(".writable-*", f"{METRICS}.kept", f"{ROLLBACKS}.*.tmp", f"{RESOLVED_CONFIG}.*.tmp"),
    *(".model.new-*", ".adapter.new-*"),
)
# What a run may write before its first checkpoint; a new start replaces it.
_BEFORE_FIRST_CHECKPOINT = (
    *(METRICS, "visualdl", RESOLVED_CONFIG, ROLLBACKS, "generated-[0-9]*.jsonl", ".saving-*"),
    *_LEFTOVERS,
)


def choose_start(
    output_dir: str,
    *,
    do_train: bool,
    overwrite: bool,
    resume: str | bool | None,
    inputs: Iterable[str | None] = (),
    damaged: Mapping[Path, str] | None = None,
) -> tuple[Path | None, list[str]]:
    """Decide from where a run starts. Called by one process.

    This function changes no file, because the run may still fail for another mistake.

    Args:
        output_dir: Output folder of the run.
        do_train: Whether the run trains.
        overwrite: Whether an earlier run in the folder is overwritten.
        resume: Checkpoint folder; True or None for the newest complete checkpoint, if there is one; False to start
            again.
        inputs: Folders that the run reads, such as its model.
        damaged: Checkpoints that a full verification has found to be damaged, and what is wrong with them.

    Returns:
        Checkpoint to resume from (None to start at the first step), and lines to report.

    Raises:
        UserError: If the folder is not writable, contains something that is neither resumed nor overwritten, or would
            be removed although the run reads it; or if the chosen checkpoint is incomplete.
    """
    output = Path(output_dir)
    check_writable(output)
    if isinstance(resume, str):
        checkpoints.read_manifest(resume)
        problem = (damaged or {}).get(Path(resume))
        if problem is not None:
            raise UserError(f"{resume} is damaged: {problem}. Choose another checkpoint.")
        return Path(resume), []
    if not do_train or (overwrite and resume is not True):
        if do_train:
            _check_keeps_inputs(output, inputs)
        return None, []
    newest, skipped = (None, []) if resume is False else checkpoints.newest_complete(output, damaged)
    if newest is not None:
        return newest, [*skipped, f"resuming from {newest} (to start again: --overwrite_output_dir)"]
    if resume is True:
        raise UserError(
            " ".join(
                [
                    f"--resume_from_checkpoint: {output} has no complete checkpoint.",
                    *skipped,
                    "Drop the flag to start at step 1.",
                ]
            )
        )
    entries = output.iterdir() if output.exists() else ()
    present = sorted(
        entry.name for entry in entries if not _is_launcher_log(entry) and not entry.name.startswith(RUN_LOCK)
    )
    if present and all(_precedes_first_checkpoint(name) for name in present):
        return None, [*skipped, f"the run in {output} ended before its first checkpoint: starting again"]
    if present:
        shown = ", ".join(present[:_MAX_SHOWN]) + (", ..." if len(present) > _MAX_SHOWN else "")
        problem = f"--output_dir {output} is not empty ({shown}) and has no complete checkpoint."
        raise UserError(" ".join([problem, *skipped, "Choose another folder or use --overwrite_output_dir."]))
    return None, skipped


def open_output_folder(output_dir: str, *, do_train: bool, overwrite: bool, start: Path | None) -> list[str]:
    """Prepare the folder for a run. Called by one process.

    Args:
        output_dir: Output folder of the run.
        do_train: Whether the run trains.
        overwrite: Whether an earlier run in the folder is overwritten.
        start: Checkpoint from which the run resumes; None to start at the first step.

    Returns:
        Lines to report.
    """
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if not do_train:
        return []
    for pattern in _LEFTOVERS:
        for path in output.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    if start is None:
        if overwrite:
            _remove_run(output)
        checkpoints.clear_staging(output)
        return []
    checkpoints.clear_staging(output)
    return [
        f"resuming from an earlier step: renamed newer checkpoint {old} to {kept.name}"
        for old, kept in checkpoints.set_aside_newer(output, start)
    ]


def check_writable(output: Path) -> None:
    """Check that files can be written to the output folder; a folder that is created for the check is removed.

    Raises:
        UserError: If a file cannot be written.
    """
    absent = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # another job may have taken it for a leftover
        for folder in absent:
            folder.rmdir()
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"--output_dir {output} is a file or a broken link, or is below one. Choose a folder."
        ) from None
    except OSError as error:
        raise UserError(
            f"--output_dir {output} cannot be written: {error.strerror or error}. Choose another folder."
        ) from None


def _check_keeps_inputs(output: Path, inputs: Iterable[str | None]) -> None:
    """Raise UserError if `--overwrite_output_dir` would remove a folder that the run reads."""
    for folder in filter(None, inputs):
        resolved = Path(folder).resolve()
        for path in map(Path.resolve, _written_by_runs(output)):
            if path == resolved or path in resolved.parents:
                raise UserError(
                    f"--overwrite_output_dir would remove {path}, but this run reads {folder}. Choose another --output_dir."
                )


def _remove_run(output: Path) -> None:
    checkpoints.clear_staging(output)
    for path in _written_by_runs(output):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _written_by_runs(output: Path) -> list[Path]:
    """Return the files and folders that earlier runs have written."""
    folders = [path for _, path in checkpoints.list_checkpoints(output)]
    written = [
        path for pattern in (*_FILES_OF_A_RUN, f"{checkpoints.SET_ASIDE_PREFIX}*") for path in output.glob(pattern)
    ]
    return folders + written


def _precedes_first_checkpoint(name: str) -> bool:
    """Return whether a run writes this file before its first checkpoint."""
    return any(fnmatch(name, pattern) for pattern in _BEFORE_FIRST_CHECKPOINT)


def _is_launcher_log(entry: Path) -> bool:
    """Return whether an entry is the launcher's `--log_dir`, which may be in the output folder and is written first."""
    return entry.is_dir() and any(entry.glob("workerlog.*"))
