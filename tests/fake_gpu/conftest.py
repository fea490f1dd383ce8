"""A machine that seems to have a GPU: the predicates of Paddle and of `config/device.py` are patched, nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import paddle
import pytest

from paddle_llm.config import device as device_module

CARD = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """nvidia-smi is on the PATH, and the installed Paddle is a build for CUDA 12.6."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    version = tmp_path / "gpu_build" / "version" / "__init__.py"
    version.parent.mkdir(parents=True)
    version.write_text("cuda_version     = '12.6'\n")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "gpu_build")])
    monkeypatch.setattr(device_module, "find_spec", lambda name: spec)


@pytest.fixture
def card(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paddle's device is the first of one H100."""
    for module in (paddle, paddle.device):
        monkeypatch.setattr(module, "get_device", lambda: "gpu:0")
        monkeypatch.setattr(module, "set_device", lambda name: None)
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    cuda = paddle.device.cuda
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    monkeypatch.setattr(cuda, "get_device_name", lambda device=None: CARD)
    monkeypatch.setattr(cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda device=None: 5 << 30)


@pytest.fixture
def on_card(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors report that they are on the GPU."""
    place = paddle.base.core.Place
    monkeypatch.setattr(place, "is_cpu_place", lambda self: False)
    monkeypatch.setattr(place, "is_gpu_place", lambda self: True)
