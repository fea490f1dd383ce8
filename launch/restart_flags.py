"""Flags that make a failed job go on where it stopped: `restart_flags.py STARTED [CONFIG.json] [--key value ...]`.

STARTED is when the job was first started, in seconds since 1970. Prints, one word per line:
- `--resume_from_checkpoint FOLDER`, where the job has written a complete checkpoint since;
- `--overwrite_output_dir 1`, where it got as far as its output folder and no checkpoint is there: begin again;
- nothing, where the same command does the right thing by itself.
Without it a job that was told to overwrite its folder would throw its own checkpoints away.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paddle_llm.checkpoint.folder import MANIFEST, newest_complete
from paddle_llm.config.parsing.arguments import read_arguments
from paddle_llm.config.run_config import FIELD_NAMES


def restart_flags(started: float, argv: list[str]) -> list[str]:
    """What to add to `argv` when the job that began at `started` has failed."""
    given = [entry.raw for entry in read_arguments(argv, FIELD_NAMES).given if entry.name == "output_dir"]
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
    for word in restart_flags(float(sys.argv[1]), sys.argv[2:]):  # no empty line: the shell would pass it on as a word
        print(word)
