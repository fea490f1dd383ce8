"""From the command line to a started job on a machine that seems to have a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paddle
import pytest

from paddle_llm.config.device import find_device, why_no_gpu
from paddle_llm.config.layout import Layout
from paddle_llm.config.paddle_switches import buckets_are_used
from paddle_llm.config.reader import Resolved, resolve
from paddle_llm.core.errors import ConfigError, UserError
from paddle_llm.generation import folders, network
from paddle_llm.generation.options import GenerateOptions
from paddle_llm.parallel.process import failure_detection, start
from paddle_llm.parallel.process.determinism import DETERMINISTIC
from paddle_llm.parallel.process.environment import prepare_host
from paddle_llm.parallel.process.start import start_process
from paddle_llm.rehearse.shrink.config import read_cluster_config
from paddle_llm.training import api as notebook
from paddle_llm.training.arguments import training_arguments
from paddle_llm.training.options import trainer_options, weights_dtype
from tests.fake_gpu.conftest import CARD
from tests.helpers.models.tiny import write_llama


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Return the command line of a pretraining on one device."""
    (tmp_path / "data").mkdir()
    for suffix in ("bin", "idx"):
        (tmp_path / f"data/c.{suffix}").touch()
    given: dict[str, Any] = {
        "model_name_or_path": write_llama(tmp_path / "llama"),
        "input_dir": tmp_path / "data",
        "output_dir": tmp_path / "output",
        "max_seq_length": 16,
        "max_steps": 2,
    }
    return ["--do_train", *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def resolved_on_gpu(flags: list[str], *more: str, world_size: int = 1) -> Resolved:
    return resolve([*flags, *more], world_size=world_size, entry="pretrain")


# ---- configuration --------------------------------------------------------------------------------------------------


def test_a_gpu_is_found(machine: None) -> None:
    assert find_device() == "gpu" and why_no_gpu() == ""


def test_a_gpu_needs_a_gpu_build(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("paddle_llm.config.device.has_gpu", lambda: True)
    assert "CPU build" in why_no_gpu() and find_device() == "cpu"


@pytest.mark.parametrize("words", [[], ["--device", "gpu"]], ids=["chosen", "requested"])
def test_settings_for_gpus_are_kept(machine: None, flags: list[str], words: list[str]) -> None:
    settings = ["--bf16", "--fp16_opt_level", "O2", "--amp_master_grad", "--use_flash_attention", "--use_fused_rope"]
    resolved = resolved_on_gpu(flags, *settings, *words)
    config = resolved.config
    assert config.device == "gpu" and ("device: gpu" in resolved.notices) == (not words)
    assert config.bf16 and config.amp_master_grad and config.use_flash_attention and config.use_fused_rope
    assert not config.use_fused_rms_norm, "off until a committed result of a GPU shows equality and speed"


def test_a_requested_gpu_must_exist(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="device = gpu, but no GPU was found on this machine"):
        resolved_on_gpu(flags, "--device", "gpu")


def test_settings_are_checked_for_a_gpu_where_the_device_itself_is_wrong(
    machine: None, flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"device": 5, "deterministic": true}')
    with pytest.raises(ConfigError) as refused:
        resolved_on_gpu([str(tmp_path / "config.json"), *flags])
    assert "device" in str(refused.value)


def test_a_rehearsal_reads_the_config_as_on_the_cluster(flags: list[str]) -> None:
    """On any machine, unless the config requests CPUs."""
    assert read_cluster_config(flags, 1).config.device == "gpu"
    assert read_cluster_config([*flags, "--device", "cpu"], 1).config.device == "cpu"


def test_offload_reaches_the_optimizer_and_the_weights(card: None, flags: list[str]) -> None:
    resolved = resolved_on_gpu(flags, "--sharding", "stage3 offload", "--sharding_parallel_degree", "2", world_size=2)
    assert resolved.config.offload_optim and trainer_options(resolved.config, resolved.facts).offload_weights


def test_words_for_gpus_are_checked(machine: None, flags: list[str]) -> None:
    layout = ["--pipeline_parallel_degree", "2", "--sharding", "stage1", "--sharding_parallel_degree", "2"]
    words = ["--pipeline_parallel_config", "enable_sharding_comm_overlap", "--logging_steps", "1"]
    words += [
        "--sharding_parallel_config",
        "split_param enable_stage1_broadcast_overlap enable_fuse_optimizer_states",
    ]
    offload = ["--offload_optim", "--gradient_accumulation_steps", "2"]
    with pytest.raises(ConfigError) as refused:
        resolved_on_gpu(flags, *layout, *words, *offload, world_size=8)
    message = str(refused.value)
    for problem in (
        "enable_sharding_comm_overlap needs amp_master_grad",
        "enable_sharding_comm_overlap cannot be combined with data parallelism",
        "split_param needs amp_master_grad",
        "enable_stage1_broadcast_overlap cannot be combined with split_param",
        "needs logging_steps above 1",
        "offload_optim with enable_fuse_optimizer_states",
    ):
        assert problem in message, message
    lonely = ["--sharding_parallel_config", "enable_stage1_tensor_fusion enable_fuse_optimizer_states"]
    with pytest.raises(ConfigError, match="enable_fuse_optimizer_states needs split_param"):
        resolved_on_gpu(flags, *layout, *lonely, world_size=4)


def test_buckets_of_stage_1_are_used_on_gpus(machine: None, flags: list[str]) -> None:
    words = ["--sharding", "stage1", "--sharding_parallel_degree", "2", "--amp_master_grad", "--bf16"]
    words += ["--fp16_opt_level", "O2", "--sharding_parallel_config", "split_param"]
    config = resolved_on_gpu(flags, *words, world_size=2).config
    layout = Layout(sharding=2, sharding_stage=1)
    assert buckets_are_used(config, layout, "gpu") and not buckets_are_used(config, layout, "cpu")


# ---- before and after paddle is imported ----------------------------------------------------------------------------


def test_threads_and_visible_gpus_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "paddle")
    for name in DETERMINISTIC:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    threads = os.environ.get("OMP_NUM_THREADS")
    assert prepare_host("gpu", 7) == []
    assert os.environ.get("OMP_NUM_THREADS") == threads and os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert not DETERMINISTIC.keys() & os.environ.keys()
    (line,) = prepare_host("gpu", deterministic=True)
    assert "FLAGS_cudnn_deterministic=1" in line and os.environ.items() >= DETERMINISTIC.items()


@pytest.fixture
def started(card: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the calls of the start of a job, in order; gloo fails."""
    done: list[str] = []
    monkeypatch.setattr(start, "keep_exit_code", lambda: done.append("keep_exit_code"))
    monkeypatch.setattr(start, "start_on_gpus", lambda: done.append("failure detection"))
    monkeypatch.setattr(paddle, "set_device", lambda name: done.append(f"set_device {name}"))
    monkeypatch.setattr(paddle.distributed.fleet, "init", lambda *_, **__: done.append("fleet.init"))
    monkeypatch.setattr(start, "install_gloo_backend", lambda: pytest.fail("gloo on a GPU"))
    return done


def test_a_job_uses_nccl(started: list[str]) -> None:
    start_process("gpu", 2)
    assert started == ["set_device gpu", "keep_exit_code"]


def test_generation_over_ranks_uses_nccl(started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    assert network.start_process("gpu") == ("gpu", Layout(tensor=2))
    assert started == ["set_device gpu", "keep_exit_code", "fleet.init", "failure detection"]


def test_generation_on_a_missing_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="--device gpu: no GPU was found on this machine"):
        network.start_process("gpu")


def test_lost_ranks_are_detected_through_the_store_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    from paddle.distributed import collective

    watched: list[tuple[Any, float | None]] = []
    monkeypatch.setattr(failure_detection, "start", lambda store, max_silence: watched.append((store, max_silence)))
    monkeypatch.setattr(collective, "_default_store", "store")
    failure_detection.start_on_gpus()
    assert watched == [("store", None)], "a main thread that is busy with a kernel is not a lost rank"


# ---- arguments ------------------------------------------------------------------------------------------------------

PRECISIONS = {
    "bf16": ({"bf16": True}, "bfloat16"),
    "fp16": ({"fp16": True}, "float16"),
    "32 bits": ({}, "float32"),
}


@pytest.mark.parametrize("name", PRECISIONS)
def test_arguments_ask_for_16_bits_and_offload(started: list[str], flags: list[str], name: str) -> None:
    precision, dtype = PRECISIONS[name]
    words = [f"--{word}" for word in precision] + ["--offload_optim"]
    words += ["--fp16_opt_level", "O2", "--amp_master_grad"] if precision else []
    resolved = resolved_on_gpu(flags, *words)
    args = training_arguments(resolved.config, resolved.layout)
    assert (args.bf16, args.fp16, args.amp_master_grad) == (name == "bf16", name == "fp16", bool(precision))
    assert args.offload_optim and weights_dtype(resolved.config) == dtype
    options = trainer_options(resolved.config, resolved.facts)
    assert options.peak_flops == (494.5e12 if dtype == "float32" else 989.5e12), CARD


def test_o1_keeps_weights_in_32_bits(machine: None, flags: list[str]) -> None:
    assert weights_dtype(resolved_on_gpu(flags, "--bf16").config) == "float32"


def test_a_notebook_on_a_gpu_starts_the_job(
    card: None, flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(notebook, "run", lambda resolved, entry: (resolved.config.device, entry))
    settings = {"input_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "output"), "do_train": True}
    model = str(tmp_path / "llama")
    settings |= {"max_seq_length": 16, "max_steps": 1}
    assert notebook.pretrain(model_name_or_path=model, **settings) == ("gpu", "pretrain")
    with pytest.raises(UserError, match="after Paddle is imported"):
        notebook.pretrain(model_name_or_path=model, deterministic=True, **settings)


def test_arguments_for_a_cpu_are_refused_on_a_gpu(card: None) -> None:
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

    with pytest.raises(UserError, match="Paddle is on gpu:0"):
        PretrainTrainer(model=None, args=SimpleNamespace(device="cpu"))
    with pytest.raises(AttributeError):  # the next thing that it looks for
        PretrainTrainer(model=None, args=SimpleNamespace(device="gpu"))


# ---- generation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "dtype"), [("bfloat16", "bfloat16"), ("float64", "float32")])
def test_weights_in_16_bits_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, dtype: str) -> None:
    dtypes: list[str] = []

    def build(run: Any, layout: Layout, dtype: str) -> None:
        dtypes.append(dtype)
        raise InterruptedError

    monkeypatch.setattr("paddle_llm.generation.network.build_model", build)
    codec = SimpleNamespace(fit_to_model=lambda size: None)
    monkeypatch.setattr("paddle_llm.generation.network.open_codec", lambda folder: codec)
    with pytest.raises(InterruptedError):
        network.load_network(write_llama(tmp_path / "model", torch_dtype=stored), "gpu", Layout())
    assert dtypes == [dtype]


def test_a_static_program_is_not_run_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "read_description", lambda folder: None)
    options = GenerateOptions(static=True, device="gpu")
    with pytest.raises(UserError, match="--device gpu"):
        folders._check_static(tmp_path, options)
