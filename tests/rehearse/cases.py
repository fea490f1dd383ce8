"""Small cases for the oracle: tiny models of each family, random tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig
from paddle_llm.data.sampler import IGNORED_LABEL
from paddle_llm.rehearse.case import Case, Sample
from tests.tiny import write_bloom, write_chatglm2, write_glm, write_llama, write_opt, write_qwen2

SEQUENCE, VOCABULARY = 16, 128
WRITERS = {
    "llama": write_llama,
    "chatglm_v2": write_chatglm2,
    "bloom": write_bloom,
    "opt": write_opt,
    "glm": write_glm,
    "qwen2": write_qwen2,
}
# The oracle's measure: Adam's epsilon above rounding, a small learning rate.
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "max_steps": 3,
    "max_seq_length": SEQUENCE,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",  # another rate at each step: a schedule that runs ahead is seen
    "adam_epsilon": 1e-4,
    "per_device_train_batch_size": 1,
}


def random_samples(
    count: int, sequence: int, vocabulary: int, seed: int = 0, ignored_labels: bool = False
) -> list[Sample]:
    """Inputs and shifted labels of random tokens; `ignored_labels`: of sample i, the first i % 5 count for nothing."""
    tokens = np.random.default_rng(seed).integers(3, vocabulary, (count, sequence + 1)).astype(np.int64)
    labels = tokens[:, 1:].copy()
    if ignored_labels:
        for number, row in enumerate(labels):
            row[: number % 5] = IGNORED_LABEL
    return [{"input_ids": row[:-1], "labels": label} for row, label in zip(tokens, labels, strict=True)]


def make_config(
    folder: Path,
    layout: Layout,
    *,
    family: str = "llama",
    model: dict[str, Any] | None = None,
    global_batch: int = 8,
    **settings: Any,
) -> RunConfig:
    """The configuration of one rank; the model's config.json is written into a folder of its own beneath `folder`."""
    overrides = model or {}
    model_folder = folder / "-".join([family, *(f"{key}={value}" for key, value in sorted(overrides.items()))])
    WRITERS[family](model_folder, **overrides)
    settings = {**SETTINGS, "model_name_or_path": str(model_folder), **settings}
    micro = settings["per_device_train_batch_size"]
    return RunConfig(
        tensor_parallel_degree=layout.tensor,
        pipeline_parallel_degree=layout.pipeline,
        virtual_pp_degree=layout.virtual_stages,
        data_parallel_degree=layout.data,
        sharding_parallel_degree=layout.sharding,
        sharding=f"stage{layout.sharding_stage}" if layout.sharding_stage else "",
        sequence_parallel=layout.sequence_parallel,
        gradient_accumulation_steps=global_batch // micro // layout.data_world_size,
        **settings,
    )


def make_case(
    folder: Path,
    layout: Layout,
    *,
    family: str = "llama",
    model: dict[str, Any] | None = None,
    global_batch: int = 8,
    evaluation: int = 11,
    ignored_labels: bool = False,
    name: str = "",
    fault: str | None = None,
    **settings: Any,
) -> Case:
    """A case of `global_batch` samples per step, in micro batches of one if `settings` say nothing else.

    Args:
        folder: the model's config.json is written into a folder of its own beneath it.
        model: overrides of config.json.
        evaluation: samples to evaluate; 11 fill no batch of an even layout.
        ignored_labels: samples bear different numbers of labels that count.
        settings: fields of RunConfig.
    """
    config = make_config(folder, layout, family=family, model=model, global_batch=global_batch, **settings)
    overrides = model or {}
    vocabulary = overrides.get("vocab_size", overrides.get("padded_vocab_size", VOCABULARY))
    train = random_samples(
        config.max_steps * global_batch, config.max_seq_length, vocabulary, ignored_labels=ignored_labels
    )
    return Case(
        layout=layout,
        config=config,
        train=train,
        evaluation=random_samples(evaluation, config.max_seq_length, vocabulary, seed=1),
        name=name or f"{family} {layout}",
        fault=fault,
    )
