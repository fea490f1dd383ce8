"""The device of this machine, and the settings that are dropped on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_llm.config import device
from paddle_llm.config.run_config import RunConfig


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert not device.has_gpu()
    assert device.find_device() == "cpu"
    assert device.why_no_gpu() == "no GPU was found on this machine"


def test_nvidia_smi_shows_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.has_gpu()


@pytest.mark.parametrize(
    ("version", "has_gpu"),
    [("cuda_version     = 'False'", False), ("cuda_version     = '12.6'", True), ("nothing = 1", False)],
)
def test_the_build_of_paddle_is_read_not_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, has_gpu: bool
) -> None:
    (tmp_path / "paddle" / "version").mkdir(parents=True)
    (tmp_path / "paddle" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "paddle" / "version" / "__init__.py").write_text(version + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "paddle", raising=False)
    assert device.paddle_has_gpu() is has_gpu


def test_a_config_for_a_cpu_is_not_changed() -> None:
    assert device.adapt_to_cpu(RunConfig()) == device.Adapted({}, [])


def test_each_dropped_setting_on_a_cpu_is_one_line() -> None:
    config = RunConfig(
        bf16=True,
        amp_master_grad=True,
        use_flash_attention=True,
        use_fused_rope=True,
        offload_optim=True,
        sharding_parallel_config="split_param enable_release_grads",
        tensor_parallel_config="sync_grad",
    )
    adapted = device.adapt_to_cpu(config)
    assert adapted.updates == {
        "bf16": False,
        "amp_master_grad": False,
        "use_flash_attention": False,
        "use_fused_rope": False,
        "offload_optim": False,
        "sharding_parallel_config": "enable_release_grads",
    }
    assert [line.split()[0] for line in adapted.notices] == [
        "--bf16",
        "--use_flash_attention",
        "--use_fused_rope",
        "--offload_optim",
        "--sharding_parallel_config:",
    ]
