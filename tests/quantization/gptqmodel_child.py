"""Runs in a process without Paddle: reads quantized folders with gptqmodel through transformers, and packs with gptqmodel.

Arguments: a folder with `questions.json`, where the answers are written. Each question has the folder of a model (or of
a matrix to pack) and the name of its answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch


def logits(folder: str, ids: list[list[int]]) -> dict[str, np.ndarray]:
    """Return the logits of a quantized folder on the CPU, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", torch_dtype=torch.float32).eval()
    kinds = {type(module).__module__ for module in model.modules() if "qlinear" in type(module).__module__}
    assert kinds, "no layer was replaced with a quantized one"
    with torch.no_grad():
        return {"logits": model(torch.tensor(ids)).logits.float().numpy()}


def packed(file: str, bits: int, group_size: int) -> dict[str, np.ndarray]:
    """Pack a dequantized weight [out, in] with scales and zeros [out, groups], and return the tensors and the weight."""
    from gptqmodel.nn_modules.qlinear.torch import TorchQuantLinear

    given = {name: torch.from_numpy(value) for name, value in np.load(file).items()}
    outputs, inputs = given["weight"].shape
    linear = torch.nn.Linear(inputs, outputs, bias=False)
    linear.weight.data = given["weight"]
    layer = TorchQuantLinear(
        bits=bits, group_size=group_size, sym=True, desc_act=True, in_features=inputs, out_features=outputs, bias=False,
        pack_dtype=torch.int32,
    )  # fmt: skip
    layer.pack(linear, given["scales"], given["zeros"], given["g_idx"])
    found = {name: getattr(layer, name).numpy() for name in ("qweight", "qzeros", "scales", "g_idx")}
    layer.post_init()
    found["weight"] = layer.dequantize_weight().float().numpy()
    return found


def main(folder: Path) -> None:
    for question in json.loads((folder / "questions.json").read_text()):
        kind, name = question.pop("kind"), question.pop("name")
        found = {"logits": logits, "packed": packed}[kind](**question)
        np.savez(folder / f"{name}.npz", **found)


if __name__ == "__main__":
    assert "paddle" not in sys.modules
    main(Path(sys.argv[1]))
