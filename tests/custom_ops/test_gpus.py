"""Which library is used on which GPU, and what happens if nvcc fails.

Paddle's functions about the GPU are replaced, and the compiler returns a library that was compiled before.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import paddle
import pytest
from fused_ln import binding

from tests.custom_ops.test_build import folder_with

pytestmark = pytest.mark.usefixtures("own_operator")
MISSING = "nvcc was not found"


@pytest.fixture(scope="module")
def ready(own_operator) -> Path:
    """Return the library of this machine, found before anything is replaced."""
    return binding.library()


@pytest.fixture
def machine(ready, monkeypatch, tmp_path):
    """Return a function that sets the GPU of this machine ("90", or None for a GPU build of Paddle without a GPU) and nvcc."""
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.version, "cuda", lambda: "13.0")
    monkeypatch.setenv("PADDLE_EXTENSION_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(binding, "SHIPPED", tmp_path / "lib")

    def set_gpu(gpu: str | None, nvcc: str | None = None) -> None:
        capability = (int(gpu[:-1]), int(gpu[-1])) if gpu else None
        monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1 if gpu else 0)
        monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: capability)
        shutil.rmtree(tmp_path / "bin", ignore_errors=True)
        path = folder_with(tmp_path, **({"nvcc": nvcc} if nvcc else {}))
        monkeypatch.setenv("NVCC", f"{path}/nvcc")

    return set_gpu


@pytest.fixture
def compiler(ready, monkeypatch):
    """Let the compiler return the library of this machine; return the list of its commands."""
    calls: list[list[str]] = []

    def run(command: list[str]) -> None:
        calls.append(command)
        shutil.copy(ready, command[command.index("-o") + 1])

    def kernels(folder: Path) -> None:
        shutil.copy(ready.parent / binding.KERNELS, folder)

    monkeypatch.setattr(binding, "_run", run)
    monkeypatch.setattr(binding, "build_kernels", kernels)
    return calls


def ship(architectures: list[str], nvcc: str = "another machine's") -> Path:
    folder = binding.SHIPPED / binding.key()
    folder.mkdir(parents=True)
    (folder / binding.LIBRARY).write_text("")
    facts = {"architectures": architectures, "nvcc": nvcc, "no_cuda": "" if architectures else MISSING}
    (folder / "facts.json").write_text(json.dumps(facts))
    return folder / binding.LIBRARY


def test_the_library_of_an_image_is_used_on_its_gpus(machine):
    """The key of the library depends neither on the GPU nor on the path of nvcc."""
    machine(None, nvcc="exit 1")
    shipped = ship(["80", "86", "90"])
    for gpu in ("80", "86", "89", "90", "100", "120"):
        machine(gpu)
        assert binding.built() == shipped and binding.why_no_cuda(shipped) == ""
    machine("90", nvcc="exit 1")
    assert binding.built() == shipped


def test_another_gpu_gets_a_new_library_if_it_can_be_built(machine):
    shipped = ship(["80", "90"])
    machine("75", nvcc="exit 1")
    assert binding.built() is None
    machine("75")
    assert binding.built() == shipped
    assert binding.why_no_cuda(shipped) == "it was built for sm_80, sm_90, not for this GPU's sm_75"


def test_a_library_without_cuda_is_used_until_nvcc_is_installed(machine):
    shipped = ship([], nvcc="")
    machine("90")
    assert binding.built() == shipped and MISSING in binding.why_no_cuda(shipped)
    machine("90", nvcc="exit 1")
    assert binding.built() is None


def test_a_failing_nvcc_leaves_a_library_for_the_cpu_and_its_message(machine, compiler):
    script = 'test "$1" = --list-gpu-arch && echo compute_90 && exit; echo "k.cu(3): error: no such type" >&2; exit 2'
    machine("90", nvcc=script)
    path = binding.library(lambda line: None)
    reason = f"it was built without CUDA: k.cu(3): error: no such type (to try again, delete {path.parent})"
    assert binding.why_no_cuda(path) == reason
    assert len(compiler) == 1 and "-DPADDLE_WITH_CUDA" not in compiler[0]
    assert binding.library() == path and len(compiler) == 1, "it is not tried again at every start"
    machine("90", nvcc=script)
    os.utime(os.environ["NVCC"], (0, 0))
    assert binding.library(lambda line: None) == path and len(compiler) == 2, "it is tried again with another nvcc"
    machine("90")
    assert binding.library() == path


@pytest.mark.parametrize(
    ("nvcc", "why"), [(None, "was not found"), ("exit 3", "non-zero exit status 3"), ("exit 0", "none of the GPUs")]
)
def test_a_useless_nvcc_is_named(machine, compiler, nvcc, why):
    machine("90", nvcc=nvcc)
    binding.key()
    assert why in binding.why_no_cuda(binding.library(lambda line: None))
