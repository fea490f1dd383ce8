"""Fixtures of the serving tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from paddle_llm.data.tokenizers.text_codec import open_codec
from tests.export.static_folders import export_static
from tests.helpers.models.folders import train_pieces, write_folder
from tests.serving.running_server import RunningServer, running

LENGTH = 256  # positions of the models


@pytest.fixture(scope="session")
def pieces(tmp_path_factory) -> Path:
    return train_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory, pieces) -> Path:
    """A model folder with grouped-query attention."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    return write_folder(
        "llama", pieces, folder, num_hidden_layers=2, num_key_value_heads=2, max_position_embeddings=LENGTH
    )


@pytest.fixture(scope="session")
def program(tmp_path_factory, llama) -> Path:
    """The static export of `llama`."""
    return export_static(llama, tmp_path_factory.mktemp("static") / "tiny")


@pytest.fixture(scope="session")
def endless(tmp_path_factory, pieces) -> Path:
    """The static export of a model whose texts take longer than a test: 50,000 positions, and never an end token."""
    folder = tmp_path_factory.mktemp("endless")
    model = write_folder("llama", pieces, folder / "llama", num_hidden_layers=1, max_position_embeddings=50_000)
    tensors = load_file(model / "model.safetensors")
    head_VH = tensors["lm_head.weight"]
    eos = open_codec(str(model)).eos_id
    head_VH[eos] = (head_VH[10] + head_VH[11]) / 2  # its logit is below one of these
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return export_static(model, folder / "endless")


@pytest.fixture(scope="session")
def server(llama) -> Iterator[RunningServer]:
    """A server of `llama`, a model folder, for requests that leave nothing behind."""
    with running(
        llama, "--served_model_name", "tiny", "--served_model_name", "alias", "--kv_cache_gb", "0.05"
    ) as found:
        yield found
