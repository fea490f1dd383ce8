"""`data inspect --finetune` and `data self-cognition` as users run them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.self_cognition import LANGUAGES, self_cognition_rows
from paddle_llm.data.samples.dataset import load_split
from tests.helpers.corpus import english_and_chinese


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "paddle_llm.cli", "data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_inspect_marks_the_trained_tokens_of_samples(tmp_path: Path, tokenizer_folder: str) -> None:
    path = tmp_path / "train.jsonl"
    texts = english_and_chinese(40)
    rows = [{"src": ["ask", f"more {i}"], "tgt": ["one", text[:150]], "language": "en"} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = run("inspect", "--finetune", path, "--tokenizer", tokenizer_folder, "--num", 2, "--max_length", 80)
    assert shown.returncode == 0, shown.stderr
    assert f"--- {path}, line 1 (" in shown.stdout and f"--- {path}, line 21 (" in shown.stdout
    assert "<s> ask[[ one</s>]] more 0[[" in shown.stdout
    assert "samples: 40, skipped: 0" in shown.stdout and "by language: en 40" in shown.stdout
    assert "longest 79" in shown.stdout and "packed (" in shown.stdout and "padding: " in shown.stdout
    assert shown.stdout.count("format src_tgt, by its keys src, tgt") == 1 and "template default" in shown.stderr
    assert "format" not in shown.stderr, "the format is named once, on stdout"
    assert "answers truncated, without EOS" in shown.stderr
    with open(path, "a") as stream:
        stream.write("{}\n")
    refused = run("inspect", "--finetune", path, "--tokenizer", tokenizer_folder)
    assert refused.returncode == 2 and f"{path}, line 41: no key 'src'" in refused.stderr
    assert "Traceback" not in refused.stderr and "--skip_bad_rows" in refused.stderr
    both = run("inspect", "corpus", "--finetune", path)
    assert both.returncode == 2 and "give either a corpus (PREFIX) or instruction data" in both.stderr


def test_inspect_lists_the_files_of_a_folder(tmp_path: Path, tokenizer_folder: str) -> None:
    row = json.dumps({"src": "q", "tgt": "a"}) + "\n"
    contents = {
        "data/train_0.jsonl": row.encode(), "data/test.json": (row + "{}\n").encode("utf-16"), "val.jsonl.gz": gzip.compress(row.encode()),
        "holdout.jsonl": row.encode(), "README.md": b"# Data", "dev.csv": b"a,b\nx,y\n",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    shown = run("inspect", "--finetune", tmp_path, "--tokenizer", tokenizer_folder)
    assert shown.returncode == 0, shown.stderr
    expected = [
        f"train  {tmp_path}/data/train_0.jsonl: 1 row; UTF-8; format src_tgt, by its keys src, tgt",
        f"dev    {tmp_path}/dev.csv: 0 rows; UTF-8; cannot be read: {tmp_path}/dev.csv: unknown format: its keys are a, b.",
        f"dev    {tmp_path}/val.jsonl.gz: 1 row; UTF-8 in .gz; format src_tgt, by its keys src, tgt",
        f"test   {tmp_path}/data/test.json: 1 row, 1 bad; UTF-16 LE with byte order mark; format src_tgt, by its keys src, tgt",
        f"skipped  {tmp_path}/README.md: not a data file by its name or suffix",
        f"skipped  {tmp_path}/holdout.jsonl: held-out data by its name",
    ]
    assert shown.stdout.splitlines()[:6] == expected
    assert "samples: 1, skipped: 0" in shown.stdout


def test_self_cognition_writes_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "me.jsonl"
    words = ("--name", "zh=小鹏,en=Little {Peng}", "--author", "Our Lab", "--output", path)
    written = run("self-cognition", *words)
    assert written.returncode == 0, written.stderr
    conversations = load_split(str(path))
    assert {c.language for c in conversations} == set(LANGUAGES) and {c.task for c in conversations} == {
        "self_cognition"
    }
    for conversation in conversations:
        answer = conversation.turns[1].content
        assert ("小鹏" if conversation.language == "zh" else "Little {Peng}") in answer and "Our Lab" in answer
    again = run("self-cognition", *words)
    assert again.returncode == 2 and "exists already" in again.stderr
    wrong = run("self-cognition", "--name", "x", "--author", "y", "--output", tmp_path / "z", "--language", "fr")
    assert wrong.returncode == 2 and "Use zh or en" in wrong.stderr and not (tmp_path / "z").exists()


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_self_cognition_has_about_a_hundred_different_questions(language: str) -> None:
    rows = list(self_cognition_rows(language, "Ada", "Lab"))
    assert 90 <= len(rows) <= 120 and len({row["query"] for row in rows}) == len(rows)
    assert not any("{" in text for row in rows for text in row.values())
    assert all("Ada" in row["response"] and "Lab" in row["response"] for row in rows)


def test_an_empty_name_is_an_error(tmp_path: Path) -> None:
    from paddle_llm.data.instructions.self_cognition import write_self_cognition

    with pytest.raises(UserError, match="--name or --author is empty"):
        write_self_cognition({"en": " "}, {"en": "x"}, ["en"], str(tmp_path / "a.jsonl"))
