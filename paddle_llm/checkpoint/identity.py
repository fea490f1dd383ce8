"""What a resumed training and its checkpoint must have in common: the network, the data, the method, the base model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddle_llm.checkpoint.folder import read_manifest
from paddle_llm.core.errors import UserError
from paddle_llm.data.identity import DataIdentity, differences

DATASET = "dataset"


@dataclass(frozen=True)
class RunIdentity:
    """Identity of a job.

    Attributes:
        model: Shape of the network.
        data: Identity of the training data.
        old_data: For a checkpoint without an identity of all data: the digests that it has instead; else empty.
        further: Method of fine-tuning (`method`) and digest of the base model (`base`).
    """

    model: dict[str, Any]
    data: DataIdentity
    old_data: dict[str, Any] = field(default_factory=dict)
    further: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the record for the manifest of a checkpoint."""
        return {"model": self.model, DATASET: self.data.parts, **self.further}


def has_old_data(folder: str | Path) -> bool:
    """Return whether a checkpoint has digests of its first samples instead of an identity of all data."""
    saved = read_manifest(folder).get("identity")
    return saved is not None and DATASET not in saved


def check_identity(folder: str | Path, identity: RunIdentity, changed: Iterable[str] = ()) -> list[str]:
    """Check that a checkpoint belongs to this network and data; a difference would not be noticed later.

    Args:
        folder: Folder of the checkpoint.
        identity: Identity of this job.
        changed: Settings of the data that differ, for the message.

    Returns:
        Lines to report.

    Raises:
        UserError: If network, data, method or base model differ.
    """
    saved = read_manifest(folder).get("identity")
    if saved is None:
        return []
    differing = [
        f"{key} {was} -> {identity.model[key]}" for key, was in saved["model"].items() if identity.model[key] != was
    ]
    if differing:
        raise UserError(
            f"{folder} was saved with a different network: {', '.join(differing)}. Use the original --model_name_or_path."
        )
    _check_data(folder, saved, identity, list(changed))
    was, now = saved.get("method"), identity.further.get("method")
    if was != now:
        was, now = was or {}, now or {}
        differing = [
            f"{key} {was.get(key)} -> {now.get(key)}" for key in {**was, **now} if was.get(key) != now.get(key)
        ]
        raise UserError(
            f"{folder} was saved with a different fine-tuning method: {', '.join(differing)}. Use the original settings."
        )
    if saved.get("base") != identity.further.get("base"):
        raise UserError(
            f"{folder} was saved with a different base model. Use the original --model_name_or_path (and adapter)."
        )
    if DATASET in saved:
        return []
    return [
        f"{folder} has digests of a part of its data only, which are the same; new checkpoints have a digest of all data"
    ]


def _check_data(folder: str | Path, saved: dict[str, Any], identity: RunIdentity, changed: list[str]) -> None:
    if DATASET in saved:
        found = differences(saved[DATASET], identity.data)
        if not found:
            return
        named = "; ".join([*changed, *found])
    else:
        rows = saved.get("rows")
        if not _other_samples(saved, identity.old_data) and rows in (None, identity.old_data.get("rows")):
            return
        named = "; ".join(changed) or "the content of the files, their split, the lengths, the template or a seed"
    raise UserError(
        f"{folder} was saved with different data: {named}. The run would continue with other samples. "
        "Use the original data, or start a new run (another --output_dir) from its adapter or model."
    )


def _other_samples(saved: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether the first samples differ; if one training is longer, only the samples of both are compared."""
    if "samples" not in saved:  # written by version 0.1, which hashed them together
        return bool(saved["data"] != now["data"])
    return any(was != new for was, new in zip(saved["samples"], now["samples"], strict=False))
