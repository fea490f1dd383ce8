"""Builds tiny networks, reads their weights and makes batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig
from tests.helpers.models import tiny

WRITERS = {
    "llama": tiny.write_llama,
    "chatglm": tiny.write_chatglm,
    "chatglm_v2": tiny.write_chatglm2,
    "bloom": tiny.write_bloom,
    "opt": tiny.write_opt,
    "glm": tiny.write_glm,
    "qwen2": tiny.write_qwen2,
    "mistral": tiny.write_mistral,
}


def build(
    folder: Path, *, load: bool = False, seed: int = 42, layout: Layout | None = None, length: int = 16, **fields
):
    """Build the network of a folder in fp32 for sequences of `length`; `fields` are fields of RunConfig."""
    from paddle_llm.models.build import build_model

    run = RunConfig(
        model_name_or_path=str(folder), max_seq_length=length, continue_training=load, seed=seed, device="cpu", **fields
    )
    return build_model(run, layout or Layout(), dtype="float32")


def weights(model: Any, family: str) -> dict[str, np.ndarray]:
    """Return this rank's weights by canonical name."""
    from paddle_llm.models.weights.names import canonical_parameters

    return {name: value.numpy() for name, value in canonical_parameters(model, family)}


def as_hugging_face(tensors: dict[str, np.ndarray], family: str) -> dict[str, np.ndarray]:
    """Return full weights with Hugging Face's names and layout."""
    from paddle_llm.models.weights.names import hugging_face

    found = {}
    for name, value in tensors.items():
        there = hugging_face(family, name, value.ndim)
        found[there.name] = np.ascontiguousarray(value.T if there.transpose else value)
    return found


def batch(family: str, length: int = 16, rows: int = 2, vocabulary: int = 120) -> dict[str, Any]:
    """Return inputs and labels of `rows` samples, as in the family's pretraining, as paddle tensors."""
    import paddle

    from paddle_llm.models.chatglm_pretrain import ChatGLMPretrainTransform

    windows = np.random.default_rng(0).integers(4, vocabulary, (rows, length + 1))
    if family == "chatglm":
        samples = [ChatGLMPretrainTransform(125, 126)(window) for window in windows]
    else:
        samples = [{"input_ids": window[:-1], "labels": window[1:]} for window in windows]
    return {key: paddle.to_tensor(np.stack([sample[key] for sample in samples])) for key in samples[0]}
