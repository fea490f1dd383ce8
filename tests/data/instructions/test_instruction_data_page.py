"""The commands in docs/reference/instruction_data.md run, and its tables match the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet

from paddle_llm.config.local_files.split_names import SPLIT_NAMES, SUFFIXES
from paddle_llm.data.instructions.conversation import ROLES
from paddle_llm.data.instructions.formats import FORMATS
from paddle_llm.data.instructions.messages import MESSAGE_FIELDS
from tests.helpers import doc_pages

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "instruction_data.md").read_text(encoding="utf-8")


def test_commands_run(tmp_path: Path, tokenizer_folder: str) -> None:
    rows = [{"instruction": f"q{i}", "output": "a"} for i in range(3)]
    for folder in ("data", "hub/data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "data/dev.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "hub/data/train-00000-of-00001.parquet")
    (tmp_path / "cn.jsonl").write_bytes('{"query": "你好", "response": "好"}\n'.encode("gbk"))
    shutil.copytree(tokenizer_folder, tmp_path / "tok")
    commands = doc_pages.commands("reference/instruction_data")
    assert len(commands) == 5
    script = "\n".join(["set -e", f'paddle-llm() {{ "{sys.executable}" -m paddle_llm.cli "$@"; }}', *commands])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "dev    data/dev.json: 3 rows; UTF-8; format alpaca" in done.stdout
    assert "你好" in (tmp_path / "cn.utf8.jsonl").read_text(encoding="utf-8")


def test_tables_are_complete() -> None:
    assert all(f"| `{name}` |" in PAGE for name in FORMATS)
    assert all(f"`{suffix}`" in PAGE for suffix in SUFFIXES)
    assert all(f"`{key}`" in PAGE for key in MESSAGE_FIELDS)
    assert all(re.search(rf"\b{word}\b", PAGE) for words in SPLIT_NAMES.values() for word in words)
    assert all(re.search(rf"\b{role}\b", PAGE) for role in ROLES)
