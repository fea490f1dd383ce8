"""The table of devices, and devices that a user describes in JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.planner.flops import peak_flops
from paddle_llm.planner.gpus import NAMES, find_gpu


@pytest.mark.parametrize("name", NAMES)
def test_every_device_is_complete(name: str) -> None:
    gpu = find_gpu(name)
    assert gpu.name == name
    assert gpu.memory_bytes > 2**30 and gpu.fp32_flops > 0 and gpu.memory_bandwidth > gpu.link_bandwidth > 0
    assert gpu.network_bandwidth > 0 and gpu.per_machine >= 1
    assert gpu.bf16_flops > gpu.fp32_flops or name in ("cpu", "v100-32g", "t4"), "without bfloat16"


def test_known_figures() -> None:
    a100 = find_gpu("A100-80G")
    assert a100.memory_bytes == 80 * 2**30
    assert a100.bf16_flops == peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12


def test_a_device_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "rented.json"
    file.write_text(json.dumps({"like": "h100", "network_bandwidth": 12.5e9, "per_machine": 4}))
    rented, h100 = find_gpu(str(file)), find_gpu("h100")
    assert (rented.name, rented.network_bandwidth, rented.per_machine) == ("rented", 12.5e9, 4)
    assert rented.memory_bytes == h100.memory_bytes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"like": "h100", "memory": 1}, "memory is unknown"),
        ({"like": "h1000"}, "Did you mean h100"),
        ({"memory_bytes": 1}, "bf16_flops, fp32_flops, .* missing"),
        ({"like": "h100", "memory_bytes": "80 GB"}, "memory_bytes must be a number"),
        ([], "must contain a JSON object"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: object, message: str) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        find_gpu(str(file))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="Did you mean a100-80g"):
        find_gpu("a100_80g")
