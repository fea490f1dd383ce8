"""The environment in which GPU kernels give the same bits in every run (`--deterministic 1`).

Some GPU kernels add numbers in the order in which their threads finish. With these settings a training repeats itself,
and resumes, bit for bit on the same kind of GPU, layout and versions.
"""

from __future__ import annotations

import os

DETERMINISTIC = {
    # cuDNN, and in Paddle (3.3.1) also the backward pass of flash attention and FlashMask, and `c_embedding`.
    "FLAGS_cudnn_deterministic": "1",
    # Gradients of embeddings without atomic additions.
    "FLAGS_embedding_deterministic": "1",
    # One cuBLAS workspace per stream (cuBLAS manual, "Results Reproducibility").
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # One order of sums in NCCL, and no sums in the switch (NVLS).
    "NCCL_ALGO": "Ring",
}


def set_deterministic_environment() -> list[str]:
    """Set the variables that are not set. Call it before Paddle is imported: the environment is read once.

    Returns:
        Lines to report: the variables that were set, and values of the user that were kept.
    """
    kept = [name for name, value in DETERMINISTIC.items() if os.environ.get(name, value) != value]
    added = {name: value for name, value in DETERMINISTIC.items() if name not in os.environ}
    os.environ.update(added)
    lines = []
    if added:
        lines.append(f"--deterministic: {' '.join(f'{name}={value}' for name, value in added.items())}")
    if kept:
        values = ", ".join(f"{name}={os.environ[name]}" for name in kept)
        lines.append(f"--deterministic: keeping {values} of the environment; runs may differ in their last bits")
    return lines


def is_deterministic() -> bool:
    """Return whether the environment has all settings, set by `set_deterministic_environment` or by the user."""
    return all(os.environ.get(name) == value for name, value in DETERMINISTIC.items())
