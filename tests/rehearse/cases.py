"""Small cases for the oracle: tiny models of each family, random tokens; for fine-tuning, samples of unequal lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.data.samples.dataset import InstructionDataset, PackedDataset
from paddle_llm.data.samples.encode import EncodedSample
from paddle_llm.data.samples.encoded_samples import EncodedSamples, EncodingReport
from paddle_llm.families import FAMILIES
from paddle_llm.rehearse.case import Case, Sample
from tests.helpers.models.tiny import (
    write_bloom,
    write_chatglm,
    write_chatglm2,
    write_glm,
    write_llama,
    write_mistral,
    write_opt,
    write_qwen2,
)

SEQUENCE, VOCABULARY = 16, 128
WRITERS = {
    "llama": write_llama,
    "chatglm": write_chatglm,
    "chatglm_v2": write_chatglm2,
    "bloom": write_bloom,
    "opt": write_opt,
    "glm": write_glm,
    "qwen2": write_qwen2,
    "mistral": write_mistral,
}
# Settings for which the oracle's limits hold: Adam's epsilon above rounding, a small learning rate.
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "max_steps": 3,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",  # a different rate at each step, so that a shifted schedule is detected
    "adam_epsilon": 1e-4,
    "per_device_train_batch_size": 1,
}
# Packed rows are longer than samples, so that several are in each.
LONGEST_SAMPLE, PACKED_ROW = 16, 24


def random_samples(
    count: int, sequence: int, vocabulary: int, seed: int = 0, ignored_labels: bool = False
) -> list[Sample]:
    """Return inputs and shifted labels of random tokens; `ignored_labels` ignores the first i % 5 labels of sample i."""
    tokens = np.random.default_rng(seed).integers(3, vocabulary, (count, sequence + 1)).astype(np.int64)
    labels = tokens[:, 1:].copy()
    if ignored_labels:
        for number, row in enumerate(labels):
            row[: number % 5] = IGNORE_INDEX
    return [{"input_ids": row[:-1], "labels": label} for row, label in zip(tokens, labels, strict=True)]


def instruction_samples(count: int, family: str, vocabulary: int, seed: int = 0) -> EncodedSamples:
    """Return prompts of 3 to 8 random tokens without loss and answers of 1 to 8 with loss, as fine-tuning encodes them."""
    draw = np.random.default_rng(seed)

    def encoded():
        for number in range(count):
            prompt, answer = (int(length) for length in draw.integers((3, 1), (9, 9)))
            tokens = draw.integers(3, vocabulary, prompt + answer).astype(np.int32)
            labels = np.where(np.arange(len(tokens)) < prompt, IGNORE_INDEX, tokens)[1:].astype(np.int32)
            prefix = prompt - 1 if FAMILIES[family].network.bidirectional_prefix else 0
            yield EncodedSample(tokens[:-1], labels, prefix), f"sample {number}"

    return EncodedSamples(encoded(), EncodingReport())


def make_config(
    folder: Path,
    layout: Layout,
    *,
    family: str = "llama",
    model: dict[str, Any] | None = None,
    global_batch: int = 8,
    entry: str = "pretrain",
    packed: bool = False,
    **settings: Any,
) -> RunConfig:
    """Return the configuration of one rank; the model's config.json is written to a separate folder below `folder`."""
    overrides = model or {}
    model_folder = folder / "-".join([family, *(f"{key}={value}" for key, value in sorted(overrides.items()))])
    WRITERS[family](model_folder, **overrides)
    lengths: dict[str, Any] = {"max_seq_length": SEQUENCE}
    if entry == "finetune":
        lengths = {"max_length": LONGEST_SAMPLE} | (
            {"zero_padding": True, "max_seq_length": PACKED_ROW} if packed else {}
        )
    fused = {"use_fused_rms_norm": FAMILIES[family].capabilities.fused_rms_norm}  # the reader's default for a CPU
    settings = {**SETTINGS, **lengths, **fused, "model_name_or_path": str(model_folder), **settings}
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
    entry: str = "pretrain",
    packed: bool = False,
    **settings: Any,
) -> Case:
    """Return a case of `global_batch` samples per step, in micro-batches of one by default.

    Args:
        folder: Folder below which the model's config.json is written.
        model: Overrides of config.json.
        evaluation: Samples to evaluate; 11 fill no batch of an even layout.
        ignored_labels: Whether samples have different numbers of labels with loss.
        entry: "finetune" for samples of unequal length and the method in `settings`.
        packed: Whether a row of the training data contains several samples.
        settings: Fields of RunConfig.
    """
    options = {"family": family, "model": model, "global_batch": global_batch, "entry": entry, "packed": packed}
    config = make_config(folder, layout, **options, **settings)
    overrides = model or {}
    vocabulary = overrides.get("vocab_size", overrides.get("padded_vocab_size", VOCABULARY))
    count = config.max_steps * global_batch
    if entry == "finetune":
        train = instruction_rows(count, family, vocabulary, packed=packed)
        evaluated = instruction_rows(evaluation, family, vocabulary, seed=1)
    else:
        train = random_samples(count, config.max_seq_length, vocabulary, ignored_labels=ignored_labels)
        evaluated = random_samples(evaluation, config.max_seq_length, vocabulary, seed=1)
    return Case(
        layout=layout,
        config=config,
        train=train,
        evaluation=evaluated,
        name=name or f"{family} {layout}",
        fault=fault,
        entry=entry,
    )


def instruction_rows(count: int, family: str, vocabulary: int, *, packed: bool = False, seed: int = 0) -> list[Sample]:
    """Return items of fine-tuning's data sets: one sample each, or packed rows."""
    if not packed:
        samples = InstructionDataset(instruction_samples(count, family, vocabulary, seed))
        return [samples[number] for number in range(count)]
    rows: list[Sample] = []
    while len(rows) < count:  # few samples at a time: of many, no row would be left with padding
        part = PackedDataset(instruction_samples(5, family, vocabulary, seed + len(rows)), PACKED_ROW, seed)
        rows += [part[number] for number in range(len(part))]
    return rows[:count]
