"""finetune_generation.py with commands 2 to 6 of a public 2023 tutorial, on CPU ranks with a tiny model."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.finetune_jobs import job, make_instructions
from tests.helpers.forked import run_forked
from tests.helpers.launcher_output import launcher_report
from tests.helpers.pretrain_jobs import rows

SCRIPT = str(Path(__file__).parents[2] / "finetune_generation.py")
# Not in the tutorial: no GPU, random weights, few positions.
ADDED = "--device cpu --continue_training 0 --max_length 96"
TENSOR_PARALLEL = """
--model_name_or_path llama --do_train --do_eval --num_train_epochs 1 --per_device_train_batch_size 4
--per_device_eval_batch_size 4 --tensor_parallel_degree 4 --overwrite_output_dir --output_dir ./checkpoints/ --logging_steps 10
--fp16 --fp16_opt_level O2 --gradient_accumulation_steps 32 --recompute --learning_rate 3e-5 --lr_scheduler_type linear
--max_grad_norm 1.0 --warmup_steps 20
"""
ONE_CARD = """
--model_name_or_path llama --do_train --do_eval --num_train_epochs 2 --per_device_train_batch_size 4
--per_device_eval_batch_size 4 --overwrite_output_dir --output_dir ./checkpoints/ --logging_steps 10 --fp16 --fp16_opt_level O2
--gradient_accumulation_steps 4 --recompute --lr_scheduler_type linear --max_grad_norm 1.0 --warmup_steps 20
"""
PIPELINE = """
--model_name_or_path llama --do_train --do_eval --num_train_epochs 1 --dataloader_num_workers 1
--gradient_accumulation_steps 16 --per_device_train_batch_size 1 --per_device_eval_batch_size 16 --tensor_parallel_degree 2
--pipeline_parallel_degree 2 --pipeline_parallel_config "disable_p2p_cache_shape" --overwrite_output_dir
--output_dir ./checkpoints/ --logging_steps 1 --disable_tqdm 1 --eval_steps 100 --eval_with_do_generation 0 --fp16 0
--fp16_opt_level O2 --recompute 0 --learning_rate 3e-5 --lr_scheduler_type linear --max_grad_norm 1.0 --warmup_steps 20
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with ./data and ./llama, like the working directory of the tutorial."""
    make_instructions(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("more", ["", "--instruction_generation"], ids=["command 2", "command 6"])
def test_all_weights_are_trained_on_four_tensor_parallel_ranks(folder, more):
    flags = shlex.split(f"{TENSOR_PARALLEL} {more} {ADDED}")
    ranks = run_ranks(_job_in, 4, str(folder), flags, timeout=180, quiet=True)
    assert [rank["steps"] for rank in ranks] == [1] * 4  # 48 rows, 128 to a step
    assert rows(folder / "checkpoints")[-1]["eval_loss"] > 0
    weights = load_file(folder / "checkpoints/model/model.safetensors")
    assert weights["llama.layers.0.self_attn.q_proj.weight"].shape == (64, 64)


def _job_in(folder: str, flags: list[str]):
    os.chdir(folder)
    return job(flags, 4)


@pytest.mark.parametrize(
    "method, tensor",
    [
        ("--learning_rate 3e-4 --lora True --r 8", "llama.layers.0.self_attn.q_proj.lora_A"),
        ("--learning_rate 3e-2 --prefix_tuning True --num_prefix_tokens 64", "llama.layers.0.self_attn.prefix_key"),
    ],
    ids=["command 3", "command 4"],
)
def test_an_adapter_is_trained_on_one_device(folder, method, tensor):
    positions = "--max_length 60" if "prefix" in method else ""
    done = _run(f"{ONE_CARD} {method} {ADDED} {positions}", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "checkpoints/adapter\n"
    assert "are trained" in done.stderr and "fp32" in done.stderr  # the trained share; that fp16 is ignored on a CPU
    assert tensor in load_file(folder / "checkpoints/adapter/adapter_model.safetensors")


def test_a_pipeline_is_trained_under_the_launcher(folder):
    """Command 5."""
    launcher = [sys.executable, "-u", "-m", "paddle.distributed.launch", "--nproc_per_node", "4", "--log_dir", "log"]
    command = [*launcher, SCRIPT, *shlex.split(f"{PIPELINE} {ADDED}")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, launcher_report(done, folder / "log")
    found = rows(folder / "checkpoints")
    assert [row["step"] for row in found if "loss" in row] == [1, 2, 3] and "eval_loss" in found[-1]
    assert list((folder / "checkpoints/model").glob("*.safetensors"))


def test_missing_data_is_one_message(folder):
    (folder / "data").rename(folder / "elsewhere")
    done = _run(f"{ONE_CARD} --lora {ADDED}", folder)
    assert done.returncode == 2 and "./data/train.json" in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "checkpoints").exists()


def _run(flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run_forked(SCRIPT, *shlex.split(flags), cwd=folder)
