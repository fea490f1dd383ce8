"""The commands in docs/reference/tokenizers.md and docs/reference/chat_templates.md run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

from tests.helpers.doc_pages import commands

ROOT = Path(__file__).parents[2]


def run(command: str, folder: Path) -> str:
    words = [sys.executable, "-m", "paddle_llm.cli", *command.split()[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_of_the_page_on_tokenizers_run(tmp_path: Path) -> None:
    (tmp_path / "my_text").mkdir()
    (tmp_path / "my_text" / "a.txt").write_text("\n".join(topics.values()))
    (command,) = commands("reference/tokenizers")
    run(command, tmp_path)
    assert (tmp_path / "data/tokenizer/tokenizer_config.json").is_file()


def test_commands_of_the_page_on_chat_templates_run(tmp_path: Path, tokenizer_folder: str) -> None:
    shutil.copytree(tokenizer_folder, tmp_path / "MODEL_FOLDER")
    (tmp_path / "train.jsonl").write_text(json.dumps({"instruction": "q", "output": "an answer"}) + "\n")
    (command,) = commands("reference/chat_templates")
    assert "[[" in run(command, tmp_path)  # the trained tokens are marked
