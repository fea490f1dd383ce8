"""Small checkpoints for tests, without a training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.checkpoint.folder import checkpoint_folder, staging_folder
from paddle_llm.checkpoint.format.manifest import Manifest
from paddle_llm.checkpoint.format.writer import LocalTensor, finish, write_rank_file
from paddle_llm.config.layout import Layout
from paddle_llm.core.atomic_output import publish

WEIGHT = "weights/w"
RANK_FILE = "rank-00000.safetensors"


def write_checkpoint(
    folder: Path,
    step: int = 1,
    layout: Layout | None = None,
    *,
    global_batch: int = 8,
    identity: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint with one tensor to a folder that may exist."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = write_rank_file(folder, 0, {WEIGHT: LocalTensor.of(np.arange(64, dtype=np.float32))})
    finish(folder, [rank], Manifest(step, asdict(layout or Layout()), global_batch, identity, settings, {}))
    return folder


def save_checkpoint(output: Path, step: int, layout: Layout | None = None) -> Path:
    """Write the checkpoint of a step to an output folder, as a training does."""
    staged, final = staging_folder(output, step), checkpoint_folder(output, step)
    publish(write_checkpoint(staged, step, layout), final)
    return final


def write_old_manifest(folder: Path, step: int = 1, layout: Layout | None = None, **further: Any) -> None:
    """Write the manifest of a checkpoint of version 0.2 for the files of a folder."""
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    record = {"step": step, "layout": asdict(layout or Layout()), "global_batch": 8, "files": files, **further}
    (folder / "manifest.json").write_text(json.dumps(record))
