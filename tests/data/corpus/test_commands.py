"""Corpus commands as users run them: from text to an inspected corpus, exit codes, stdout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from paddle_llm.cli.data import data, tokenizer
from tests.helpers.corpus import CHINESE, english_and_chinese


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "paddle_llm.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.txt" for i in range(3)]
    for i, path in enumerate(paths):
        lines = [d.replace("\n", " ") for d in english_and_chinese(100, seed=i)]
        path.write_text("\n".join([CHINESE, *lines]), encoding="utf-8")
    return paths


def test_from_text_to_an_inspected_corpus(tmp_path: Path, files: list[Path]) -> None:
    trained = run("tokenizer", "train", "--input", *files, "--output_dir", tmp_path / "tok", "--vocab_size", 650)
    assert trained.returncode == 0, trained.stderr
    assert "650 pieces" in trained.stderr and trained.stdout == ""
    prefix = tmp_path / "out" / "corpus"
    arguments = ["--tokenizer", tmp_path / "tok", "--output_prefix", prefix]
    built = run("data", "build", "--input", *files[:2], "--input", files[2], *arguments, "--workers", 2)
    assert built.returncode == 0, built.stderr
    assert "303 documents" in built.stderr
    seen = run("data", "inspect", prefix, "--tokenizer", tmp_path / "tok", "--samples", 2)
    assert seen.returncode == 0, seen.stderr
    assert "303 documents" in seen.stdout and "ended by EOS: 303 documents" in seen.stdout
    assert CHINESE[:20] in seen.stdout and "index and data agree" in seen.stdout
    Path(f"{prefix}.bin").write_bytes(Path(f"{prefix}.bin").read_bytes()[:-2])
    broken = run("data", "inspect", prefix)
    assert broken.returncode == 2
    assert broken.stderr.startswith("error: ") and "truncated" in broken.stderr and "Traceback" not in broken.stderr


def test_a_user_error_is_one_message_with_exit_code_2(tmp_path: Path, files: list[Path], tokenizer_folder: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "x"}\n{"txt": "y"}\n')
    prefix = tmp_path / "c"
    failed = run("data", "build", "--input", bad, "--tokenizer", tokenizer_folder, "--output_prefix", prefix)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1 and f"{bad}, line 2: no key 'text'; it has txt" in failed.stderr
    skipped = run(
        "data", "build", "--input", bad, "--tokenizer", tokenizer_folder, "--output_prefix", prefix, "--skip_bad_rows"
    )
    assert skipped.returncode == 0 and "skipped: 1 bad row, " in skipped.stderr
    absent = run("data", "build", "--input", bad, "--tokenizer", tmp_path / "none", "--output_prefix", prefix)
    assert absent.returncode == 2 and "no such folder" in absent.stderr


@pytest.mark.parametrize(("group", "command"), [(tokenizer, "train"), (data, "build"), (data, "inspect")])
def test_every_command_shows_an_example(group, command: str) -> None:
    shown = CliRunner().invoke(group, [command, "--help"])
    assert shown.exit_code == 0
    assert f"paddle-llm {group.name} {command}" in shown.output
