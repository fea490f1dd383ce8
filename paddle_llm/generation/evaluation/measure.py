"""Size on disk, type of the weights and peak memory of a model."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

from paddle_llm.config.local_files.weights import choose_weights
from paddle_llm.core.artifacts import MANIFEST, MODEL_CONFIG
from paddle_llm.core.json_files import read_json_object
from paddle_llm.models.weights.files import WeightFiles

_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def size_on_disk(folder: Path, *, allow_pickle: bool = False) -> int:
    """Return the size in bytes of the files that a folder's weights are read from; for a checkpoint, of all its files."""
    if (folder / MANIFEST).is_file():
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in choose_weights(folder, allow_pickle=allow_pickle).files)


def describe_weights(folder: Path, *, allow_pickle: bool = False) -> str:
    """Return how most numbers of a folder's weights are stored: `float32`, or for quantized ones `gptq, 4 bits, g128`."""
    quantization = read_json_object(folder / MODEL_CONFIG).get("quantization_config")
    if isinstance(quantization, dict):
        parts = [str(quantization.get("quant_method")), f"{quantization.get('bits')} bits"]
        size = quantization.get("group_size")
        return ", ".join([*parts, f"g{size}" if isinstance(size, int) and size > 0 else "one group per column"])
    files = WeightFiles(folder, allow_pickle=allow_pickle)
    counts: Counter[str] = Counter()
    for name in files.names():
        counts[files.dtype(name)] += math.prod(files.shape(name))
    return counts.most_common(1)[0][0]


def reset_peak_memory() -> None:
    """Count the peak memory of this process from now on, where the system permits it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # the peak then includes what this process needed before
        return


def peak_memory(device: str) -> int:
    """Return the peak memory in bytes: of the GPU's allocations, or on a CPU of this process (resident set)."""
    if device == "gpu":
        import paddle

        return int(paddle.device.cuda.max_memory_allocated())
    found = _PEAK.search(Path("/proc/self/status").read_text())
    assert found is not None, "/proc/self/status has no VmHWM"
    return int(found[1]) * 1024
