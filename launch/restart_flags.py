"""Flags with which a failed job is restarted: `restart_flags.py STARTED [CONFIG.json] [--key value ...]`.

STARTED is the time of the first start, in seconds since 1970. Prints, one word per line:
- `--resume_from_checkpoint FOLDER` if the job has written a complete checkpoint since then;
- `--overwrite_output_dir 1` if the job has created its output folder and no checkpoint;
- nothing if the same command can be repeated unchanged.
Without these flags, a job with `--overwrite_output_dir` would delete its own checkpoints on a restart.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paddle_llm.checkpoint.folder import MANIFEST, newest_complete
from paddle_llm.config.parsing.arguments import read_arguments
from paddle_llm.config.run_config import FIELD_NAMES


def restart_flags(started: float, argv: list[str]) -> list[str]:
    """Return the flags to add to `argv` for a restart of the job that was started at `started`."""
    given = [setting.raw for setting in read_arguments(argv, FIELD_NAMES).given if setting.name == "output_dir"]
    if not given:
        return []
    output = Path(given[-1])
    newest, _ = newest_complete(output)
    if newest is not None:
        return ["--resume_from_checkpoint", str(newest)] if _is_since(newest / MANIFEST, started) else []
    return ["--overwrite_output_dir", "1"] if _is_since(output / "config.resolved.json", started) else []


def _is_since(path: Path, started: float) -> bool:
    return path.exists() and path.stat().st_mtime >= started


if __name__ == "__main__":
    for word in restart_flags(
        float(sys.argv[1]), sys.argv[2:]
    ):  # without an empty line, which the shell would pass on as a word
        print(word)
