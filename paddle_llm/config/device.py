"""The device of this machine, found without importing Paddle, and what a CPU does not support."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from paddle_llm.config.run_config import RunConfig

Device = Literal["gpu", "cpu"]
UNSUPPORTED = "not supported on the CPU"  # origin of a value in config.resolved.json


def has_gpu() -> bool:
    """Return whether this process may use an NVIDIA GPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def count_cards() -> int:
    """Return the number of NVIDIA GPUs of this machine or container, hidden ones included; 0 if it cannot be found out (WSL)."""
    return sum(1 for _ in Path("/dev").glob("nvidia[0-9]*"))


def paddle_has_gpu() -> bool:
    """Return whether the installed Paddle is a GPU build. Reads its version file, since importing Paddle takes a second."""
    spec = find_spec("paddle")
    if spec is None or not spec.submodule_search_locations:
        return False
    version = Path(next(iter(spec.submodule_search_locations))) / "version" / "__init__.py"
    match = re.search(r"^cuda_version\s*=\s*'(\d[^']*)'", version.read_text(), re.M) if version.is_file() else None
    return match is not None


def find_device() -> Device:
    """Return "gpu" if this machine and the installed Paddle have one, else "cpu"."""
    return "gpu" if has_gpu() and paddle_has_gpu() else "cpu"


def why_no_gpu() -> str:
    """Return why `find_device` returns "cpu"; "" if it returns "gpu"."""
    if not has_gpu():
        return "no GPU was found on this machine"
    if not paddle_has_gpu():
        return "this machine has a GPU, but the installed Paddle is a CPU build (docs/installation.md shows how to install the GPU build)"
    return ""


@dataclass(frozen=True)
class Adapted:
    """Changes of a config for a device.

    Attributes:
        updates: New value by field.
        notices: One line for each setting that is not supported.
    """

    updates: dict[str, Any]
    notices: list[str]


# Settings that need a GPU -> what happens on a CPU instead. The results are the same.
_GPU_SWITCHES = {
    "use_flash_attention": "attention is computed by plain operations",
    "use_fused_rope": "rotary embeddings are computed by plain operations",
    "offload_optim": "optimizer states are in host memory anyway",
    "offload_recompute_inputs": "activations are in host memory anyway",
}
# Switches of the *_parallel_config fields that only change the communication of GPUs, not the results.
_GPU_ONLY = frozenset(
    [
        "enable_stage1_tensor_fusion",
        "enable_stage1_overlap",
        "enable_stage2_overlap",
        "enable_stage1_broadcast_overlap",
        "enable_stage1_allgather_overlap",
        "enable_fuse_optimizer_states",
        "disable_stage1_reduce_avg",
        "split_param",
        "enable_mp_async_allreduce",
        "enable_mp_skip_c_identity",
        "enable_mp_fused_linear_param_grad_add",
        "enable_sp_async_reduce_scatter",
        "enable_sharding_comm_overlap",
        "enable_dp_comm_overlap",
        "enable_overlap_p2p_comm",
        "enable_timer",
    ]
)


def adapt_to_cpu(config: RunConfig) -> Adapted:
    """Return the changes that drop what a CPU does not support."""
    updates: dict[str, Any] = {}
    notices: list[str] = []
    for name in ("bf16", "fp16"):
        if getattr(config, name):
            updates |= {name: False, "amp_master_grad": False}
            notices.append(f"--{name} is not supported on the CPU: everything is computed in fp32.")
    for name, instead in _GPU_SWITCHES.items():
        if getattr(config, name):
            updates[name] = False
            notices.append(f"--{name} is not supported on the CPU: {instead}.")
    if config.sharding_offload:
        updates["sharding"] = f"stage{config.sharding_stage}"
        notices.append(
            f"--sharding {config.sharding}: offload has no effect on the CPU, where everything is in host memory anyway."
        )
    for name in ("tensor_parallel_config", "pipeline_parallel_config", "sharding_parallel_config"):
        words = getattr(config, name).split()
        dropped = [word for word in words if word in _GPU_ONLY]
        if dropped:
            updates[name] = " ".join(word for word in words if word not in _GPU_ONLY)
            notices.append(
                f"--{name}: {' '.join(dropped)} {'is' if len(dropped) == 1 else 'are'} for GPUs only and dropped on the CPU."
            )
    return Adapted(updates, notices)
