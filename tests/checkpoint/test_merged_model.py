"""A merged model folder holds what one process would hold, from any layout; bfloat16 keeps its bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.models.tiny import write_llama
from tests.helpers.pretrain_jobs import config


def _save(folder: Path, layout: Layout) -> None:
    """Random weights depend on the seed only, so every layout must save the same weights."""
    from paddle_llm.checkpoint.merged_model import save_merged_model
    from paddle_llm.models.build import build_model
    from paddle_llm.parallel.process.start import start_process
    from paddle_llm.training.arguments import training_arguments

    start_process("cpu", layout.world_size)
    run = config(folder)
    training_arguments(run, layout)
    model = build_model(run, layout, dtype="float32")
    save_merged_model(model, layout, folder / "model")


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as opened:
            names = opened.keys()
            found |= {name: opened.get_tensor(name) for name in names}
    return found


def _save_from(layout: Layout, tied: bool, folder: Path) -> None:
    write_llama(folder / "llama", vocab_size=127, num_key_value_heads=2, tie_word_embeddings=tied)
    run_ranks(_save, layout.world_size, folder, layout)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Return the folder that one process has written, by whether the head is tied."""
    folders = {tied: tmp_path_factory.mktemp("one") for tied in (False, True)}
    for tied, folder in folders.items():
        _save_from(Layout(), tied, folder)
    return folders


LAYOUTS = [Layout(tensor=2), Layout(pipeline=2), Layout(tensor=2, pipeline=2), Layout(data=2)]


@pytest.mark.parametrize(
    "layout, tied", [*((layout, False) for layout in LAYOUTS), (Layout(pipeline=2), True)], ids=str
)
def test_every_layout_saves_what_one_process_holds(layout, tied, tmp_path, one_process):
    _save_from(layout, tied, tmp_path)
    one, many = _tensors(one_process[tied] / "model"), _tensors(tmp_path / "model")
    assert one.keys() == many.keys() and ("lm_head.weight" in one) != tied
    assert all(np.array_equal(one[name], many[name]) for name in one)
    assert one["llama.embed_tokens.weight"].shape == (127, 64)  # the padding to 128 is gone
    assert (tmp_path / "model/config.json").read_text() == (one_process[tied] / "model/config.json").read_text()


def test_bfloat16_keeps_its_bits(tmp_path):
    from paddle_llm.models.weights.files import write_safetensors

    bits = np.arange(12, dtype=np.uint16).reshape(3, 4)
    write_safetensors(tmp_path / "m.safetensors", {"w": bits, "x": np.ones(3, np.float32)})
    with safe_open(tmp_path / "m.safetensors", framework="np") as opened:
        assert opened.get_slice("w").get_dtype() == "BF16" and opened.get_slice("w").get_shape() == [3, 4]
    assert bits.tobytes() in (tmp_path / "m.safetensors").read_bytes()
