"""Fixtures of the generation tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.models.folders import train_pieces, write_folder


@pytest.fixture(scope="session")
def pieces(tmp_path_factory) -> Path:
    return train_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory, pieces) -> Path:
    return write_folder("llama", pieces, tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=2)
