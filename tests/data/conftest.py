"""Fixtures of the data tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paddle_llm.data.tokenizer import train_tokenizer
from tests.helpers.corpus import english_and_chinese


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a trained tokenizer with 700 pieces."""
    folder = str(tmp_path_factory.mktemp("tokenizer") / "tok")
    train_tokenizer(english_and_chinese(300), folder, 700)
    return folder


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[[str, list[str]], Path]:
    """Return a function that writes documents as {"text": ...} lines."""

    def write(name: str, documents: list[str]) -> Path:
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps({"text": d}, ensure_ascii=False) + "\n" for d in documents), encoding="utf-8"
        )
        return path

    return write
