"""gptqmodel (in a process without Paddle) reads our folders with our logits, and packs to our bits; we read what it packs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.export.quantized.api import QuantizeOptions, quantize
from paddle_llm.models.weights.gptq.format import format_written, unpack, zero_offset
from paddle_llm.quantization.gptq import GPTQOptions, quantize_gptq
from paddle_llm.quantization.grid import Grid
from tests.export.environments import gptqmodel_path
from tests.helpers.models.folders import train_pieces, write_folder
from tests.helpers.models.networks import build

pytestmark = [pytest.mark.slow, pytest.mark.hf, pytest.mark.timeout(1200)]
CHILD = Path(__file__).with_name("gptqmodel_child.py")
TEXT = "The class statement defines a name. An object has a type, and a module has a list of names.\n" * 12
# Name -> options of the quantization of a LLaMA with 64 hidden and 96 intermediate numbers.
WAYS = {
    "8 bits": {"bits": 8, "method": "rtn"},
    "4 bits": {"bits": 4},
    "4 bits, act-order": {"bits": 4, "act_order": True},
    "4 bits, asymmetric": {"bits": 4, "symmetric": False},
    "4 bits, one group": {"bits": 4, "group_size": -1},
    "3 bits, act-order": {"bits": 3, "act_order": True},
}


def ask(folder: Path, questions: list[dict]) -> dict[str, dict[str, np.ndarray]]:
    """Run the child and return its answers by name."""
    (folder / "questions.json").write_text(json.dumps(questions))
    environment = os.environ | {"PYTHONPATH": str(gptqmodel_path())}
    done = subprocess.run(
        [sys.executable, str(CHILD), str(folder)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {one["name"]: dict(np.load(folder / f"{one['name']}.npz")) for one in questions}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Quantize one model in every way; return (our logits, those of gptqmodel) by name."""
    import paddle

    folder = tmp_path_factory.mktemp("gptqmodel")
    (folder / "text.txt").write_text(TEXT)
    sizes = {"intermediate_size": 96, "num_hidden_layers": 2}
    model = write_folder("llama", train_pieces(folder), folder / "model", **sizes)
    ids = np.random.default_rng(0).integers(5, 300, (2, 24))
    ours, questions = {}, []
    for number, (name, fields) in enumerate(WAYS.items()):
        calibration = (
            {} if fields.get("method") == "rtn" else {"calibration": (folder / "text.txt",), "samples": 8, "length": 24}
        )
        out = folder / f"out-{number}"
        quantize(model, out, QuantizeOptions(**{"group_size": 32, **calibration, **fields}))
        network = build(out, load=True)
        network.eval()
        with paddle.no_grad():
            found = network(input_ids=paddle.to_tensor(ids))
        ours[name] = (found[0] if isinstance(found, tuple) else found).numpy()
        questions.append({"kind": "logits", "name": f"logits-{number}", "folder": str(out), "ids": ids.tolist()})
    theirs = ask(folder, questions)
    return {name: (ours[name], theirs[f"logits-{number}"]["logits"]) for number, name in enumerate(WAYS)}


@pytest.mark.parametrize("name", WAYS)
def test_gptqmodel_computes_the_same_logits(answers, name):
    ours, theirs = answers[name]
    difference = np.abs(ours - theirs).max() / np.abs(ours).max()
    print(f"{name}: largest difference of a logit, relative to the largest logit: {difference:.2e}")
    assert difference < 1e-3


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_gptqmodel_packs_the_same_bits(tmp_path, bits):
    draw = np.random.default_rng(bits)
    weight_IO = draw.standard_normal((128, 64)).astype(np.float32)
    x_TI = draw.standard_normal((512, 128)) * np.linspace(0.5, 2, 128)
    found = quantize_gptq(weight_IO, x_TI.T @ x_TI, Grid(bits), GPTQOptions(32, act_order=True))
    np.savez(
        tmp_path / "matrix.npz",
        weight=found.dequantized().T.copy(),
        scales=found.scales_GO.T.copy(),
        zeros=found.zeros_GO.T.copy(),
        g_idx=found.groups_I,
    )
    question = {
        "kind": "packed",
        "name": "packed",
        "file": str(tmp_path / "matrix.npz"),
        "bits": bits,
        "group_size": 32,
    }
    theirs, ours = ask(tmp_path, [question])["packed"], found.tensors()
    for name in ("qweight", "g_idx", "scales"):
        np.testing.assert_array_equal(theirs[name], ours[name])
    # It keeps zeros as they are, and subtracts 1 when it writes files of the format `gptq`.
    stored = unpack(ours["qzeros"].T, bits) + zero_offset(format_written(bits))
    np.testing.assert_array_equal(unpack(theirs["qzeros"].T, bits), stored)
    # It multiplies in float16.
    np.testing.assert_allclose(theirs["weight"], found.dequantized(), rtol=1e-3, atol=1e-6)
