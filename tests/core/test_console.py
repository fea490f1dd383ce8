"""Commands print to a stdout that lacks characters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def ascii_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "paddle_llm.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_ascii_stdout_loses_no_result(tmp_path: Path) -> None:
    folder = tmp_path / "数据"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["模型"]}))
    done = ascii_run("check-model", str(folder), "--quick")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "\\u6570\\u636e" in done.stdout
