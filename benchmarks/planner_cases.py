"""Short trainings on CPU ranks whose peak memory is measured and planned. Ranks import this module."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.reader import Resolved, resolve
from paddle_llm.parallel.process.start import start_process
from paddle_llm.planner.job import Job, job_of
from paddle_llm.rehearse.case import Case, Sample
from paddle_llm.rehearse.ranks import run_ranks

_DECODER = {
    "vocab_size": 4000,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {**_DECODER, "architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "qwen2": {**_DECODER, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False},
    "mistral": {**_DECODER, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_key_value_heads": 2},
    "chatglm2": {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "padded_vocab_size": 4000,
        "hidden_size": 256,
        "ffn_hidden_size": 688,
        "kv_channels": 64,
        "num_layers": 4,
        "num_attention_heads": 4,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "seq_length": 1024,
        "layernorm_epsilon": 1e-5,
        "rmsnorm": True,
        "post_layer_norm": True,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    "bloom": {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": 4000,
        "hidden_size": 256,
        "n_layer": 4,
        "n_head": 4,
        "layer_norm_epsilon": 1e-5,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    },
    "opt": {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": 4000,
        "hidden_size": 256,
        "ffn_dim": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "word_embed_proj_dim": 256,
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
}
_RUN = {
    "output_dir": "output",
    "do_train": True,
    "device": "cpu",
    "max_steps": 2,
    "max_seq_length": 256,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
}


@dataclass(frozen=True)
class MemoryCase:
    """One training.

    Attributes:
        name: Name in the table.
        family: Key of SHAPES.
        world_size: Number of ranks.
        shape: Fields of config.json that differ.
        run: Fields of RunConfig.
    """

    name: str
    family: str
    world_size: int = 1
    shape: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)


def resolved_of(case: MemoryCase, folder: Path) -> Resolved:
    """Write the model's config.json and read the config as training does."""
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(SHAPES[case.family] | case.shape))
    file = folder / "run.json"
    method = {"lora", "adalora", "prefix_tuning", "prompt_tuning", "adapter", "freeze_layers", "dataset_name_or_path"}
    entry = "finetune" if method & case.run.keys() else "pretrain"
    data = {"dataset_name_or_path": "data", "pad_to_max_length": True} if entry == "finetune" else {"input_dir": "data"}
    values = {**_RUN, "model_name_or_path": str(model), "continue_training": False, **data, **case.run}
    if entry == "finetune":
        values.setdefault("max_length", values["max_seq_length"])
    file.write_text(json.dumps(values))
    return resolve([str(file)], world_size=case.world_size, entry=entry, device="cpu")


def planned_job(case: MemoryCase) -> Job:
    """Return the planner's job of a case."""
    with tempfile.TemporaryDirectory() as folder:
        return job_of(resolved_of(case, Path(folder)))


def measure(case: MemoryCase, timeout: float = 600) -> list[dict[str, int]]:
    """Train a case and return each rank's bytes: `built` with the network, `peak` of the training."""
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(_train, case.world_size, case, folder, timeout=timeout, quiet=True)


def _train(case: MemoryCase, folder: str) -> dict[str, int]:
    start_process("cpu", case.world_size)
    import paddle

    from paddle_llm.rehearse.case_trainer import trainer_of

    rank = paddle.distributed.get_rank() if case.world_size > 1 else 0
    resolved = resolved_of(case, Path(folder) / f"rank{rank}")
    config = resolved.config
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * resolved.layout.data_world_size
    length = config.max_seq_length
    draw = np.random.default_rng(0)
    train: list[Sample] = []
    for _ in range(batch * config.max_steps):
        window = draw.integers(3, 1000, length + 1).astype(np.int64)
        train.append({"input_ids": window[:-1].copy(), "labels": window[1:].copy()})
    work = Case(resolved.layout, config, train, entry=resolved.entry)
    stats = paddle.base.core
    before = stats.host_memory_stat_current_value("Allocated", 0)
    with tempfile.TemporaryDirectory() as output:
        trainer = trainer_of(work, output)
        built = stats.host_memory_stat_current_value("Allocated", 0)
        stats.host_memory_stat_reset_peak_value("Allocated", 0)
        trainer.train()
    return {
        "before": before,
        "built": built - before,
        "peak": stats.host_memory_stat_peak_value("Allocated", 0) - before,
        "end": stats.host_memory_stat_current_value("Allocated", 0) - before,
    }


def _sharded(stage: int, degree: int = 2) -> dict[str, Any]:
    return {"sharding": f"stage{stage}", "sharding_parallel_degree": degree}


def _pipeline(stages: int, micro_batches: int, virtual: int = 1) -> dict[str, Any]:
    found = {"pipeline_parallel_degree": stages, "gradient_accumulation_steps": micro_batches}
    return {**found, "virtual_pp_degree": virtual} if virtual > 1 else found


_TP2, _TP4 = {"tensor_parallel_degree": 2}, {"tensor_parallel_degree": 4}
_RECOMPUTE, _ATTENTION, _CORE = (
    {"recompute": True, "recompute_granularity": part} for part in ("full", "full_attn", "core_attn")
)
_LORA = {"lora": True}
_LARGE = {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "num_key_value_heads": 8}
_ROWS = "per_device_train_batch_size"


def cases() -> list[MemoryCase]:
    """Return the trainings of the table."""
    one = [
        ("base", {}, {}),
        ("recompute", {}, _RECOMPUTE),
        ("recompute attention", {}, _ATTENTION),
        ("recompute scores", {}, _CORE),
        ("s512", {}, {"max_seq_length": 512}),
        ("s1024 one row", {}, {"max_seq_length": 1024, _ROWS: 1}),
        ("four rows", {}, {_ROWS: 4}),
        ("wide", _LARGE, {}),
        ("wide recompute", _LARGE, _RECOMPUTE),
        ("eight layers", {"num_hidden_layers": 8}, {}),
        ("large vocabulary", {"vocab_size": 16000}, {}),
        ("large vocabulary recompute", {"vocab_size": 16000}, _RECOMPUTE),
        ("grouped keys", {"num_key_value_heads": 2}, {}),
        ("tied", {"tie_word_embeddings": True}, {}),
        ("one micro-batch", {}, {"gradient_accumulation_steps": 1}),
        ("gradients freed", {}, {"release_grads": True, "gradient_accumulation_steps": 1}),
        ("two layers kept", {"num_hidden_layers": 8}, {**_RECOMPUTE, "no_recompute_layers": [0, 1]}),
        ("lora", {}, _LORA),
        ("lora recompute", {}, {**_LORA, **_RECOMPUTE}),
        ("lora of two matrices", {}, {**_LORA, "lora_rank": 32, "lora_target_modules": ["q_proj", "v_proj"]}),
        ("freeze", {}, {"freeze_layers": 2}),
    ]
    found = [MemoryCase(name, "llama", 1, shape, run) for name, shape, run in one]
    many = [
        ("dp2", 2, {}, {}),
        ("sharding2 stage 1", 2, {}, _sharded(1)),
        ("sharding2 stage 2", 2, {}, _sharded(2)),
        ("sharding2 stage 3", 2, {}, _sharded(3)),
        ("tp2", 2, {}, _TP2),
        ("pp2", 2, {}, _pipeline(2, 4)),
        ("tp2 recompute", 2, {}, {**_TP2, **_RECOMPUTE}),
        ("pp2 recompute", 2, {}, {**_pipeline(2, 4), **_RECOMPUTE}),
        ("tp2 sequence parallel", 2, {}, {**_TP2, "sequence_parallel": True}),
        ("sharding2 stage 1 recompute", 2, _LARGE, {**_sharded(1), **_RECOMPUTE}),
        ("sharding2 stage 2 recompute", 2, _LARGE, {**_sharded(2), **_RECOMPUTE}),
        ("sharding2 stage 3 recompute", 2, _LARGE, {**_sharded(3), **_RECOMPUTE}),
        ("pp2 of five layers", 2, {"num_hidden_layers": 5}, _pipeline(2, 4)),
        ("pp2 one micro-batch", 2, {}, _pipeline(2, 1)),
        ("pp2 two micro-batches", 2, {}, _pipeline(2, 2)),
        ("lora tp2", 2, {}, {**_LORA, **_TP2}),
        ("lora sharding2 stage 2", 2, {}, {**_LORA, **_sharded(2)}),
        ("lora pp2", 2, {}, {**_LORA, **_pipeline(2, 4)}),
        ("tp4", 4, {}, _TP4),
        ("pp4", 4, {}, _pipeline(4, 8)),
        ("tp2 pp2", 4, {}, {**_TP2, **_pipeline(2, 4)}),
        ("tp2 sharding2 stage 1", 4, {}, {**_TP2, **_sharded(1)}),
        ("tp2 sharding2 stage 2", 4, {}, {**_TP2, **_sharded(2)}),
        ("pp2 sharding2 stage 1", 4, {}, {**_pipeline(2, 4), **_sharded(1)}),
        ("sharding4 stage 2", 4, _LARGE, _sharded(2, 4)),
        ("sharding4 stage 3", 4, _LARGE, _sharded(3, 4)),
    ]
    found += [MemoryCase(name, "llama", size, shape, run) for name, size, shape, run in many]
    for family in ("qwen2", "mistral", "chatglm2", "bloom", "opt"):
        found.append(MemoryCase(f"{family}", family))
        found.append(MemoryCase(f"{family} recompute", family, run=_RECOMPUTE))
        found.append(MemoryCase(f"{family} s512", family, run={"max_seq_length": 512}))
        found.append(MemoryCase(f"{family} lora", family, run=_LORA))
        found.append(MemoryCase(f"{family} tp2", family, 2, run=_TP2))
    return found
