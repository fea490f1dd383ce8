"""Flags with which a failed job continues where it stopped."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.checkpoint.folder import newest_complete
from paddle_llm.config.parsing.arguments import read_arguments
from paddle_llm.config.run_config import FIELD_NAMES
from paddle_llm.core.artifacts import MANIFEST, RESOLVED_CONFIG


def restart_flags(started: float, words: list[str]) -> list[str]:
    """Return the flags to add for a restart; without them --overwrite_output_dir would delete the job's own checkpoints.

    Args:
        started: Time of the job's first start in seconds since 1970.
        words: CONFIG.json and flags of the job.

    Returns:
        `--resume_from_checkpoint FOLDER` if the job has written a complete checkpoint; `--overwrite_output_dir 1` if it
        has created its output folder without a checkpoint; nothing if the same command does the right thing.
    """
    given = [entry.raw for entry in read_arguments(words, FIELD_NAMES).given if entry.name == "output_dir"]
    if not given:
        return []
    output = Path(given[-1])
    newest, _ = newest_complete(output)
    if newest is not None:
        return ["--resume_from_checkpoint", str(newest)] if _is_since(newest / MANIFEST, started) else []
    return ["--overwrite_output_dir", "1"] if _is_since(output / RESOLVED_CONFIG, started) else []


def _is_since(path: Path, started: float) -> bool:
    return path.exists() and path.stat().st_mtime >= started
