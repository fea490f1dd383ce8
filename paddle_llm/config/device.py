"""Which device this machine offers, found out without importing paddle, and what a CPU cannot honour."""

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


def has_gpu() -> bool:
    """An NVIDIA GPU that this process may use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def paddle_has_gpu() -> bool:
    """The installed Paddle is a GPU build. Reads its version file: importing paddle takes a second."""
    spec = find_spec("paddle")
    if spec is None or not spec.submodule_search_locations:
        return False
    version = Path(next(iter(spec.submodule_search_locations))) / "version" / "__init__.py"
    match = re.search(r"^cuda_version\s*=\s*'(\d[^']*)'", version.read_text(), re.M) if version.is_file() else None
    return match is not None


def find_device() -> Device:
    """The best device there is."""
    return "gpu" if has_gpu() and paddle_has_gpu() else "cpu"


def why_no_gpu() -> str:
    """Why find_device says cpu; "" when it says gpu."""
    if not has_gpu():
        return "this machine shows no GPU"
    if not paddle_has_gpu():
        return (
            "there is a GPU, but the installed Paddle is a CPU build (the README has the install line of the GPU build)"
        )
    return ""


@dataclass(frozen=True)
class Adapted:
    """What becomes of a config on a device: changed fields, and one line for each thing not honoured."""

    updates: dict[str, Any]
    notices: list[str]


# Kernels that exist on a GPU only; their plain twins compute the same.
_GPU_SWITCHES = {
    "use_flash_attention": "attention is computed by plain operations",
    "use_fused_rope": "rotary embeddings are computed by plain operations",
    "offload_optim": "there is no device memory to move optimizer states out of",
    "offload_recompute_inputs": "there is no device memory to move activations out of",
}
# Words of the *_parallel_config fields that only change how a GPU communicates: same numbers without them.
_GPU_WORDS = frozenset(
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
    """`config` with what a CPU cannot do left out, each said in one line."""
    updates: dict[str, Any] = {}
    notices: list[str] = []
    for name in ("bf16", "fp16"):
        if getattr(config, name):
            updates |= {name: False, "amp_master_grad": False}
            notices.append(f"--{name} is not honoured on the CPU: everything is computed in fp32.")
    for name, instead in _GPU_SWITCHES.items():
        if getattr(config, name):
            updates[name] = False
            notices.append(f"--{name} is not honoured on the CPU: {instead}.")
    if config.sharding_offload:
        updates["sharding"] = f"stage{config.sharding_stage}"
        notices.append(
            f"--sharding {config.sharding}: offload means nothing on the CPU, where all is in host memory anyway."
        )
    for name in ("tensor_parallel_config", "pipeline_parallel_config", "sharding_parallel_config"):
        words = getattr(config, name).split()
        dropped = [word for word in words if word in _GPU_WORDS]
        if dropped:
            updates[name] = " ".join(word for word in words if word not in _GPU_WORDS)
            notices.append(f"--{name}: {' '.join(dropped)} are for GPUs only and are left out on the CPU.")
    return Adapted(updates, notices)
