"""The folders of checkpoints in an output folder: list, choose, check, rotate.

A checkpoint is written to `.saving-<step>/`, its manifest last, and renamed to `checkpoint-<step>/` (format/). A folder
without a valid manifest is not a checkpoint. Checkpoints of version 0.2 and earlier have another manifest, which records
the sizes of the files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle_llm.checkpoint.format.manifest import has_this_format
from paddle_llm.checkpoint.format.verify import problem_of
from paddle_llm.config.layout import Layout
from paddle_llm.core.artifacts import (
    ADAPTER_CONFIG,
    MANIFEST,
    MODEL_CONFIG,
    PDPARAMS,
    SAFETENSORS,
    TORCH_WEIGHTS,
    TRAINER_STATE,
)
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object

SET_ASIDE_PREFIX = "left-"  # of a checkpoint that is newer than the one from which the run was resumed
# Keys that a manifest must have; keys that later versions added may be absent.
_MANIFEST_KEYS = {"step": int, "layout": dict, "global_batch": int, "files": dict}
_FILES_OF_OTHER_TRAINERS = (
    TRAINER_STATE,
    SAFETENSORS,
    TORCH_WEIGHTS,
    PDPARAMS,
    MODEL_CONFIG,
)
_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)$")
_ALL_FILES, _WEIGHT_FILES = re.compile(""), re.compile(r"model|config\.json")


def checkpoint_folder(output_dir: str | Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return Path(output_dir) / f"checkpoint-{step}"


def staging_folder(output_dir: str | Path, name: int | str) -> Path:
    """Return the temporary folder of a checkpoint or of a model folder.

    Args:
        output_dir: Output folder of the run.
        name: Step of the checkpoint, or name of the folder.
    """
    return Path(output_dir) / f".saving-{name}"


def clear_staging(output_dir: str | Path) -> None:
    """Remove the temporary folders of processes that were killed while saving."""
    for leftover in Path(output_dir).glob(".saving-*"):
        shutil.rmtree(leftover)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint and check that it is complete; digests of tensors are not compared.

    Raises:
        UserError: If the manifest or a file is missing or damaged, or a file has another size.
    """
    folder = Path(folder)
    problem = why_incomplete(folder)
    if problem:
        raise UserError(f"{folder} is not a complete checkpoint: {problem}. {_remedy(folder)}")
    return dict(json.loads((folder / MANIFEST).read_text()))


def read_weights_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint and check the files of its weights; files of the optimizer may be missing.

    Raises:
        UserError: If the manifest is missing, or a file of the weights is missing or has another size.
    """
    problem = why_incomplete(folder, _WEIGHT_FILES)
    if problem:
        raise UserError(f"{folder} is not a complete checkpoint: {problem}. Choose another checkpoint.")
    return dict(json.loads((folder / MANIFEST).read_text()))


def _remedy(folder: Path) -> str:
    """Return what to do about a folder from which a run cannot resume, depending on its contents."""
    below = [path.name for _, path in list_checkpoints(folder)]
    if below:
        return f"Choose one of its checkpoints: {', '.join(below)}."
    if (folder / ADAPTER_CONFIG).is_file():
        return "To continue training an adapter, use --lora_path or --prefix_path."
    if not (folder / MANIFEST).exists() and any((folder / name).is_file() for name in _FILES_OF_OTHER_TRAINERS):
        return "Checkpoints of other trainers cannot be resumed. Train from their weights with --model_name_or_path."
    return "Choose another checkpoint, or drop --resume_from_checkpoint."


def step_of(folder: str | Path) -> int:
    """Return the step at which a complete checkpoint was saved."""
    return int(read_manifest(folder)["step"])


def is_old(folder: str | Path) -> bool:
    """Return whether a checkpoint is of version 0.2 or earlier."""
    return not has_this_format(Path(folder))


def method_of(folder: Path) -> str:
    """Return the name of the fine-tuning method that wrote a checkpoint; "full" if all weights were trained."""
    identity = read_json_object(folder / MANIFEST).get("identity") or {}
    return str((identity.get("method") or {}).get("name", "full"))


def why_incomplete(folder: Path, names: re.Pattern[str] = _ALL_FILES) -> str | None:
    """Return what is wrong with a checkpoint folder, or None; digests of tensors are not compared.

    Args:
        folder: The folder.
        names: Pattern of the names of the files to check, matched at their beginning, in a checkpoint of version 0.2 or
            earlier; all files are checked in others.
    """
    if not folder.is_dir():
        return "the folder does not exist"
    if not is_old(folder):
        return problem_of(folder)
    try:
        record = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, RecursionError):
        return f"its {MANIFEST} cannot be read"
    if not isinstance(record, dict) or any(not isinstance(record.get(k), kind) for k, kind in _MANIFEST_KEYS.items()):
        return f"its {MANIFEST} was not written by paddle_llm"
    for name, size in record["files"].items():
        path = folder / name
        if not names.match(path.name):
            continue
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return None


def list_checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of every folder that is named like a checkpoint, by step; it may be incomplete."""
    found = ((_CHECKPOINT_NAME.match(path.name), path) for path in Path(output_dir).glob("checkpoint-*"))
    return sorted((int(match.group(1)), path) for match, path in found if match)


def newest_complete(output_dir: str | Path, damaged: Mapping[Path, str] | None = None) -> tuple[Path | None, list[str]]:
    """Find the newest complete checkpoint of a run.

    Args:
        output_dir: Output folder of the run.
        damaged: Checkpoints that a full verification has found to be damaged, and what is wrong with them.

    Returns:
        Folder of the checkpoint (None if there is none), and a line for each newer checkpoint that is incomplete.
    """
    skipped: list[str] = []
    for _, folder in reversed(list_checkpoints(output_dir)):
        problem = (damaged or {}).get(folder) or why_incomplete(folder)
        if problem is None:
            return folder, skipped
        skipped.append(f"skipped checkpoint {folder}: {problem}.")
    return None, skipped


def set_aside_newer(output_dir: str | Path, start: Path) -> list[tuple[Path, Path]]:
    """Rename the checkpoints that are newer than the one from which a run resumes.

    Otherwise the next resume would use one of them, which this run does not continue, and rotation would keep them as
    the newest and delete those that this run writes.

    Returns:
        (old folder, new folder) of each.
    """
    output = Path(output_dir)
    match = _CHECKPOINT_NAME.match(start.name)
    if match is None or start.resolve().parent != output.resolve():
        return []
    moved = []
    for step, folder in list_checkpoints(output):
        if step > int(match.group(1)):
            target = folder.with_name(SET_ASIDE_PREFIX + folder.name)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(folder, target)
            moved.append((folder, target))
    return moved


def check_layout(folder: str | Path, layout: Layout, global_batch: int) -> list[str]:
    """Compare the layout and the global batch of a job with those of the checkpoint from which it resumes.

    Args:
        folder: The checkpoint.
        layout: Layout of the job.
        global_batch: Samples per optimizer step of the job.

    Returns:
        Lines to report about differences.

    Raises:
        UserError: If they differ and the checkpoint is of version 0.2 or earlier, which depends on both.
    """
    manifest = read_manifest(folder)
    saved, was = Layout(**manifest["layout"]), manifest["global_batch"]
    if is_old(folder):
        _check_same(folder, saved, layout, was, global_batch)
        return [
            f"{folder} has the format of version 0.2: it is read on its own layout; new checkpoints have the new format"
        ]
    lines = []
    if saved != layout:
        lines.append(f"{folder} was saved on layout {saved} and is resumed on layout {layout}")
    if was != global_batch:
        lines.append(
            f"{folder} was saved with a global batch of {was} samples, and this job has {global_batch}: it continues at the next "
            "sample that was not used"
        )
    return lines


def _check_same(folder: str | Path, saved: Layout, layout: Layout, was: int, global_batch: int) -> None:
    if saved != layout:
        raise UserError(
            f"{folder} was saved with layout {saved}, but this job has layout {layout}. Resume with the same degrees, or start "
            "from the model folder with --continue_training 1 (new optimizer state)."
        )
    if was != global_batch:
        raise UserError(
            f"{folder} was saved with a global batch of {was} samples, but this job has {global_batch}: "
            "it would not continue at the same sample. Set --gradient_accumulation_steps or --per_device_train_batch_size "
            f"so that the global batch is {was}."
        )


def rotate(output_dir: str | Path, keep: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints, but neither the best one nor the newest complete one.

    A checkpoint is renamed before its files are deleted, so that a killed process leaves none that is incomplete.

    Args:
        output_dir: Output folder of the run.
        keep: Number of checkpoints to keep; None or not above 0 to keep all.
        best: Folder of the best checkpoint, which is kept; None if it is unknown.
    """
    if not keep or keep <= 0:
        return
    folders = [folder for _, folder in list_checkpoints(output_dir)]
    deletable = [folder for folder in folders if best is None or Path(best).resolve() != folder.resolve()]
    doomed = deletable[: max(0, len(folders) - keep)]
    newest = newest_complete(output_dir)[0] if doomed else None
    for folder in doomed:
        if folder not in (folders[-1], newest):
            removed = staging_folder(output_dir, folder.name)
            os.replace(folder, removed)
            shutil.rmtree(removed)
