"""Fixtures of the export tests: a process set up for Paddle, and a small LLaMA with a tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.models.folders import train_pieces, write_folder


@pytest.fixture(scope="session", autouse=True)
def process() -> None:
    from paddle_llm.generation.network import start_process

    start_process("cpu")


@pytest.fixture(scope="session")
def pieces(tmp_path_factory) -> Path:
    return train_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory, pieces) -> Path:
    """Random weights under Hugging Face's names, grouped key-value heads, a sentencepiece tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    return write_folder("llama", pieces, folder, num_hidden_layers=2, num_key_value_heads=2)
