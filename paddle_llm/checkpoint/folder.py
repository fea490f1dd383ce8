"""What a checkpoint folder looks like: complete or absent, never half.

A checkpoint is written below `.saving-<step>/`, gets a manifest of its files as its last one, and is renamed to
`checkpoint-<step>/` when every rank has finished. A folder counts as complete when its manifest stands and every file
in it has the size that the manifest says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

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

LEFT = "left-"  # before the name of a checkpoint whose course was left by resuming an older one
# What a manifest must hold to be used; keys that later versions added may be absent.
_MANIFEST_KEYS = {"step": int, "layout": dict, "global_batch": int, "files": dict}
_OF_OTHER_TRAINERS = (
    TRAINER_STATE,
    SAFETENSORS,
    TORCH_WEIGHTS,
    PDPARAMS,
    MODEL_CONFIG,
)
_NAME = re.compile(r"checkpoint-(\d+)$")
_ALL_FILES, _WEIGHT_FILES = re.compile(""), re.compile(r"model|config\.json")


def checkpoint_folder(output_dir: str | Path, step: int) -> Path:
    return Path(output_dir) / f"checkpoint-{step}"


def staging_folder(output_dir: str | Path, what: int | str) -> Path:
    """Where the checkpoint of a step, or a folder of another name, is written before it is renamed."""
    return Path(output_dir) / f".saving-{what}"


def clear_staging(output_dir: str | Path) -> None:
    """Remove what killed saves have left."""
    for leftover in Path(output_dir).glob(".saving-*"):
        shutil.rmtree(leftover)


def write_manifest(
    folder: Path,
    *,
    step: int,
    layout: Layout,
    global_batch: int,
    identity: dict | None = None,
    settings: dict | None = None,
) -> None:
    """List every file of `folder` with its size: the last file of a checkpoint."""
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    record = {
        "step": step,
        "layout": asdict(layout),
        "global_batch": global_batch,
        "identity": identity,
        "settings": settings,
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(record, indent=1))


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a complete checkpoint.

    Raises:
        UserError: there is none, or a file of it is missing or has another size.
    """
    folder = Path(folder)
    problem = _incomplete(folder)
    if problem:
        raise UserError(f"{folder} is not a complete checkpoint: {problem}. {_remedy(folder)}")
    return json.loads((folder / MANIFEST).read_text())


def read_weights_manifest(folder: Path) -> dict:
    """Read the manifest of a checkpoint and check the files of its weights; files of the optimizer may be missing.

    Raises:
        UserError: If the manifest is missing, or a file of the weights is missing or has another size.
    """
    problem = _incomplete(folder, _WEIGHT_FILES)
    if problem:
        raise UserError(f"{folder} is not a complete checkpoint: {problem}. Choose another checkpoint.")
    return json.loads((folder / MANIFEST).read_text())


def _remedy(folder: Path) -> str:
    """What to do with a folder that cannot be continued, by what it holds."""
    below = [path.name for _, path in list_checkpoints(folder)]
    if below:
        return f"Name one of its checkpoints: {', '.join(below)}."
    if (folder / ADAPTER_CONFIG).is_file():
        return "An adapter is trained further with --lora_path or --prefix_path."
    if not (folder / MANIFEST).exists() and any((folder / name).is_file() for name in _OF_OTHER_TRAINERS):
        return "Checkpoints of other trainers are not continued: train from the weights with --model_name_or_path."
    return "Name another one, or leave out the flag."


def step_of(folder: str | Path) -> int:
    """The step at which a complete checkpoint was saved."""
    return int(read_manifest(folder)["step"])


def _incomplete(folder: Path, names: re.Pattern[str] = _ALL_FILES) -> str | None:
    """Return what is wrong with a checkpoint folder, or None.

    Args:
        names: Pattern that a file's name must begin with for the file to be checked.
    """
    if not folder.is_dir():
        return "there is no such folder"
    try:
        record = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, RecursionError):
        return f"its {MANIFEST} cannot be read"
    if not isinstance(record, dict) or any(not isinstance(record.get(k), kind) for k, kind in _MANIFEST_KEYS.items()):
        return f"its {MANIFEST} is not one of this program"
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
    """(step, folder) of everything named like a checkpoint, oldest first."""
    found = ((_NAME.match(path.name), path) for path in Path(output_dir).glob("checkpoint-*"))
    return sorted((int(match.group(1)), path) for match, path in found if match)


def newest_complete(output_dir: str | Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint of a run, and why newer ones were passed over (one line each)."""
    passed_over = []
    for _, folder in reversed(list_checkpoints(output_dir)):
        problem = _incomplete(folder)
        if problem is None:
            return folder, passed_over
        passed_over.append(f"{folder} is passed over: {problem}")
    return None, passed_over


def set_aside_newer(output_dir: str | Path, start: Path) -> list[tuple[Path, Path]]:
    """Rename what is newer than the checkpoint that a run continues from: (old name, new name) of each.

    They belong to another course of the training. Left in place, the next resume would take one of them, and rotation
    would count them as the newest and delete what this run writes.
    """
    output = Path(output_dir)
    match = _NAME.match(start.name)
    if match is None or start.resolve().parent != output.resolve():
        return []
    moved = []
    for step, folder in list_checkpoints(output):
        if step > int(match.group(1)):
            target = folder.with_name(LEFT + folder.name)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(folder, target)
            moved.append((folder, target))
    return moved


def check_layout(folder: str | Path, layout: Layout, global_batch: int) -> None:
    """Refuse to continue on another layout or global batch.

    Raises:
        UserError: with both, and what to do.
    """
    manifest = read_manifest(folder)
    saved = Layout(**manifest["layout"])
    if saved != layout:
        raise UserError(
            f"{folder} was saved on {saved}, this job runs on {layout}: this version continues on the same layout only. "
            "Start with the old degrees, or use the merged model folder with --continue_training 1 (new optimizer state)."
        )
    if manifest["global_batch"] != global_batch:
        raise UserError(
            f"{folder} was saved with a global batch of {manifest['global_batch']} samples, this job has {global_batch}: "
            "the position in the data would be wrong. Keep per_device_train_batch_size x gradient_accumulation_steps."
        )


def check_identity(folder: str | Path, identity: dict, changed: Iterable[str] = ()) -> None:
    """Refuse to continue with another network or other data: neither would be noticed later.

    Args:
        changed: settings of the data that differ, to name in the message.

    Raises:
        UserError: with what differs.
    """
    saved = read_manifest(folder).get("identity")
    if saved is None:
        return
    differing = [
        f"{key} {was} -> {identity['model'][key]}"
        for key, was in saved["model"].items()
        if identity["model"][key] != was
    ]
    if differing:
        raise UserError(f"{folder} was saved with another network: {', '.join(differing)}. Use its config.json.")
    rows = saved.get("rows")
    if _other_samples(saved, identity) or (rows is not None and rows != identity.get("rows")):
        named = "; ".join(changed) or "the content of the files, their split, the lengths, the template or a seed"
        raise UserError(
            f"{folder} was saved with other data. Different: {named}. Resuming there would continue at other samples. "
            "Use the original data, or start a new run (another --output_dir) from its adapter or model."
        )
    if saved.get("method") != identity.get("method"):
        was, now = (found.get("method") or {} for found in (saved, identity))
        differing = [
            f"{key} {was.get(key)} -> {now.get(key)}" for key in {**was, **now} if was.get(key) != now.get(key)
        ]
        raise UserError(
            f"{folder} was saved by another way of fine-tuning: {', '.join(differing)}. Give the same flags."
        )
    if saved.get("base") != identity.get("base"):
        raise UserError(
            f"{folder} holds what was trained over another base model: give the --model_name_or_path (and adapter) that it began with."
        )


def _other_samples(saved: dict, identity: dict) -> bool:
    """Whether the first samples differ. A longer training may have more of them: those that both have are compared."""
    if "samples" not in saved:  # written by version 0.1, which hashed them together
        return saved["data"] != identity["data"]
    return any(was != now for was, now in zip(saved["samples"], identity["samples"], strict=False))


def rotate(output_dir: str | Path, keep: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints above `keep`; the best one stays."""
    if not keep or keep <= 0:
        return
    folders = [folder for _, folder in list_checkpoints(output_dir)]
    spare = [folder for folder in folders if best is None or Path(best).resolve() != folder.resolve()]
    for folder in spare[: max(0, len(folders) - keep)]:
        if folder != folders[-1]:
            shutil.rmtree(folder)
