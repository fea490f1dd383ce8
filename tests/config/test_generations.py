"""Commands and configs of four generations of PaddleNLP, with the keys and values that their examples had.

Each starts unchanged (on GPUs), and every translation is reported.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.config.reader import Resolved, resolve
from tests.helpers.models.tiny import write_llama

SHARED = {"input_dir": "./data", "output_dir": "./output", "max_seq_length": 64, "do_train": True}

# A (2.5, spring 2023): flags only.
GENERATION_A = """
    --model_type llama --config_name None --use_flash_attention 0 --use_fused_rms_norm False --fuse_attention_qkv True
    --recompute_granularity full --virtual_pp_degree 1 --share_folder 0 --split 949,50,1 --fp16 --fp16_opt_level O2
    --scale_loss 1024 --learning_rate 0.0003 --min_learning_rate 0.00003 --decay_steps 900 --max_steps 1000 --eval_steps 100
    --save_steps 500 --weight_decay 0.01 --warmup_ratio 0.01 --max_grad_norm 1.0 --logging_steps 20 --sharding stage2
    --dataloader_num_workers 1 --report_to visualdl --disable_tqdm true --continue_training 0 --recompute 1 --do_eval
"""
# B (2.6rc, summer 2023): adds benchmark and profiling keys.
GENERATION_B = GENERATION_A + " --benchmark 0 --profiler_options None --sharding_degree 4 --tensor_parallel_degree 2"
# C (2.6 to 2.8): JSON, in which unknown keys were ignored.
GENERATION_C = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 64,
    "per_device_eval_batch_size": 64,
    "tensor_parallel_degree": 2,
    "pipeline_parallel_degree": 4,
    "pipeline_parallel_config": "disable_partial_send_recv",
    "sharding_parallel_degree": 4,
    "virtual_pp_degree": 1,
    "sharding": "stage1",
    "sequence_parallel": 1,
    "adam_beta2": 0.95,
    "use_flash_attention": True,
    "use_fused_rope": True,
    "learning_rate": 1e-04,
    "initializer_range": 0.002,
    "min_learning_rate": 1e-05,
    "warmup_steps": 2000,
    "max_steps": 200000,
    "save_steps": 1000,
    "amp_master_grad": 1,
    "fp16": True,
    "fp16_opt_level": "O2",
    "continue_training": 1,
    "do_eval": True,
    "do_predict": True,
    "distributed_dataloader": 0,
    "eval_accumulation_steps": 16,
    "enable_linear_fused_grad_add": True,
    "skip_warmup": True,
    "seed": 0,
}
# D (3.0): JSON and flags.
GENERATION_D = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 16,
    "tensor_parallel_degree": 2,
    "pipeline_parallel_degree": 1,
    "sharding": "stage2",
    "virtual_pp_degree": 1,
    "sequence_parallel": 0,
    "use_fused_rms_norm": True,
    "warmup_steps": 30,
    "warmup_ratio": 0.01,
    "max_steps": 10000,
    "bf16": True,
    "fp16_opt_level": "O2",
    "continue_training": 0,
    "recompute": False,
    "distributed_dataloader": 1,
    "recompute_granularity": "full",
    "unified_checkpoint": True,
    "save_total_limit": 2,
    "use_expert_parallel": False,
    "context_parallel_degree": -1,
    "skip_memory_metrics": True,
}


def from_flags(model: Path, flags: str, world_size: int) -> Resolved:
    shared = [word for key, value in SHARED.items() for word in (f"--{key}", str(value))]
    return resolve(
        [*shared, "--model_name_or_path", str(model), *shlex.split(flags)], world_size=world_size, device="gpu"
    )


def from_file(tmp_path: Path, model: Path, content: dict[str, Any], world_size: int) -> Resolved:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**SHARED, "model_name_or_path": str(model), **content}))
    return resolve([str(path)], world_size=world_size, device="gpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "tiny")


def check_notices(found: Resolved, *texts: str) -> None:
    """Assert that each text is in one notice, and that every notice has one of the texts."""
    assert len(found.notices) == len(texts), found.notices
    for text in texts:
        assert len([line for line in found.notices if text in line]) == 1, (text, found.notices)


def test_commands_of_generation_a_are_translated(model: Path) -> None:
    found = from_flags(model, GENERATION_A, 8)
    assert found.layout == Layout(sharding=8, sharding_stage=2)
    assert found.config.decay_steps == 900 and found.config.fuse_attention_qkv is True
    check_notices(found)


def test_commands_of_generation_b_are_translated(model: Path) -> None:
    found = from_flags(model, GENERATION_B, 8)
    assert found.layout == Layout(sharding=4, tensor=2, sharding_stage=2)
    check_notices(found, "--sharding_degree 4 is read as --sharding_parallel_degree 4")
    assert found.origins["sharding_parallel_degree"] == "translated from --sharding_degree"


def test_configs_of_generation_c_are_translated(tmp_path: Path, model: Path) -> None:
    found = from_file(tmp_path, model, GENERATION_C, 32)
    assert found.layout == Layout(1, 4, 2, 4, 1, sequence_parallel=True)
    check_notices(
        found,
        "per_device_eval_batch_size is 128 with a pipeline",
        '"initializer_range"',
        '"eval_accumulation_steps"',
        '"enable_linear_fused_grad_add"',
    )


def test_configs_of_generation_d_are_translated(tmp_path: Path, model: Path) -> None:
    found = from_file(tmp_path, model, GENERATION_D, 8)
    assert found.layout == Layout(sharding=4, tensor=2, sharding_stage=2)
    check_notices(found, "--warmup_ratio has no effect: --warmup_steps 30 takes precedence", '"distributed_dataloader"')
