"""Converts a checkpoint from the format that a folder has to the one that was requested."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from paddle_llm.checkpoint.convert.ours import open_ours
from paddle_llm.checkpoint.convert.paddlenlp import is_paddlenlp, open_paddlenlp
from paddle_llm.checkpoint.convert.source import WEIGHTS, Source
from paddle_llm.checkpoint.convert.targets import Advance, write_checkpoint, write_model, write_unified
from paddle_llm.checkpoint.folder import list_checkpoints, method_of
from paddle_llm.checkpoint.format.manifest import has_this_format
from paddle_llm.core.artifacts import MANIFEST
from paddle_llm.core.errors import UserError

CHECKPOINT, UNIFIED, MODEL = "paddle-llm", "unified", "model"
# Gets the number of bytes that will be read; yields the function that advances a progress bar.
Progress = Callable[[int], AbstractContextManager[Advance]]


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        source: The checkpoint that was read.
        target: Format that was written.
        global_batch: Samples per optimizer step; 0 if unknown.
    """

    source: Source
    target: str
    global_batch: int


def convert_checkpoint(
    folder: Path,
    out: Path,
    *,
    target: str | None,
    show: Progress,
    allow_pickle: bool = False,
    global_batch: int | None = None,
) -> Converted:
    """Convert a checkpoint. Memory: one tensor.

    Args:
        folder: Checkpoint of PaddleNLP or of this library.
        out: Folder to write.
        target: "paddle-llm", "unified" or "model"; None: "paddle-llm" for one of PaddleNLP.
        show: Progress bar.
        allow_pickle: Whether PaddleNLP's pickles may be read.
        global_batch: Samples per optimizer step, if the checkpoint does not show it.

    Raises:
        UserError: If the checkpoint cannot be read or written in this format.
    """
    ours = has_this_format(folder)
    if not ours and not is_paddlenlp(folder):
        raise UserError(_why_no_checkpoint(folder))
    if ours and target in (None, CHECKPOINT):
        raise UserError(f"{folder} is already in this library's format. Name another one: --to {UNIFIED} or {MODEL}.")
    _refuse_trained_parts(folder)
    target = target or CHECKPOINT
    source = open_ours(folder) if ours else open_paddlenlp(folder, allow_pickle=allow_pickle)
    sizes = [one.nbytes for key, one in source.tensors.items() if target != MODEL or key.startswith(f"{WEIGHTS}/")]
    with show(sum(sizes)) as advance:
        if target == CHECKPOINT:
            write_checkpoint(source, out, global_batch=global_batch, advance=advance)
        elif target == UNIFIED:
            write_unified(source, out, advance=advance)
        else:
            write_model(source, out, advance=advance)
    return Converted(source, target, source.global_batch or global_batch or 0)


def _refuse_trained_parts(folder: Path) -> None:
    """Raise UserError for a checkpoint of this library that contains only the weights that fine-tuning trained."""
    method = method_of(folder) if (folder / MANIFEST).is_file() else "full"
    if method != "full":
        raise UserError(
            f"{folder} contains only the weights that fine-tuning with {method} trained; only checkpoints of whole networks are "
            f"converted. Training continues from it as it is. For a model with these weights: paddle-llm export BASE OUT --adapter {folder}."
        )


def _why_no_checkpoint(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder. Give a checkpoint."
    below = [path.name for _, path in list_checkpoints(folder)]
    if below:
        return f"{folder} is not a checkpoint but contains some: {', '.join(below)}. Name one of them."
    return (
        f"{folder} is not a checkpoint: it has neither a manifest.json of this library nor PaddleNLP's model_state*.pdparams or "
        "optimizer.safetensors.index.json. Give a folder checkpoint-<step>."
    )
