"""GPUs that a job can be planned for: memory, peak FLOP/s, bandwidths and links.

Memory is what the driver reports, bandwidths are those of NVIDIA's datasheets. Peaks are those of `flops.peak_flops`.
Links between machines are the usual ones of the vendor's own servers: one 200 Gb/s port per A100, one 400 Gb/s port per
H100, H200 and B200; for cards without NVLink one port of 100 Gb/s that the eight cards of a machine share.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.planner.flops import peak_flops

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of device and the machine that contains it.

    Attributes:
        name: Name in commands.
        memory_bytes: Memory of one device, as its driver reports it.
        bf16_flops: Dense peak of matrix products in 16 bits, FLOP/s; 0 if the device has no bfloat16.
        fp32_flops: Dense peak of matrix products in fp32 (TF32 where the card has it), FLOP/s.
        memory_bandwidth: Bandwidth of the device's memory, bytes/s.
        link_bandwidth: Bandwidth to another device of the machine in one direction, bytes/s.
        network_bandwidth: Bandwidth of one device to another machine in one direction, bytes/s.
        per_machine: Devices in one machine.
    """

    name: str
    memory_bytes: int
    bf16_flops: float
    fp32_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    per_machine: int = 8


_PCIE_4, _PCIE_3 = 32e9, 16e9
_PORT_200G, _PORT_400G, _SHARED_100G = 25e9, 50e9, 100e9 / 8 / 8

# name: (name of the device in `flops.peak_flops`, memory in MiB, memory bandwidth, link in the machine, network)
_ROWS: dict[str, tuple[str, int, float, float, float]] = {
    "a100-40g": ("A100", 40960, 1.555e12, 300e9, _PORT_200G),
    "a100-80g": ("A100", 81920, 2.039e12, 300e9, _PORT_200G),
    "a800-80g": ("A800", 81920, 2.039e12, 200e9, _PORT_200G),
    "h100": ("H100", 81559, 3.35e12, 450e9, _PORT_400G),
    "h100-pcie": ("H100 PCIe", 81559, 2.0e12, _PCIE_4 * 2, _PORT_200G),
    "h800": ("H800", 81559, 3.35e12, 200e9, _PORT_400G),
    "h200": ("H200", 143771, 4.8e12, 450e9, _PORT_400G),
    "h20": ("H20", 97871, 4.0e12, 450e9, _PORT_400G),
    "b200": ("B200", 183359, 8.0e12, 900e9, _PORT_400G),
    "l40s": ("L40S", 46068, 0.864e12, _PCIE_4, _SHARED_100G),
    "l20": ("L20", 46068, 0.864e12, _PCIE_4, _SHARED_100G),
    "a40": ("A40", 46068, 0.696e12, _PCIE_4, _SHARED_100G),
    "a30": ("A30", 24576, 0.933e12, _PCIE_4, _SHARED_100G),
    "a10": ("A10", 23028, 0.600e12, _PCIE_4, _SHARED_100G),
    "4090": ("RTX 4090", 24564, 1.008e12, _PCIE_4, _SHARED_100G),
    "3090": ("RTX 3090", 24576, 0.936e12, _PCIE_4, _SHARED_100G),
    "v100-32g": ("V100", 32768, 0.900e12, 150e9, _SHARED_100G),
    "t4": ("T4", 15360, 0.320e12, _PCIE_3, _SHARED_100G),
}
_FLOPS_PER_CORE = 32e9  # AVX2 at 2 GHz: two fused multiply-adds of eight numbers per cycle


def _gpu(name: str) -> Gpu:
    device, memory, bandwidth, link, network = _ROWS[name]
    return Gpu(
        name=name,
        memory_bytes=memory * _MIB,
        bf16_flops=peak_flops(device, "bfloat16") or 0.0,
        fp32_flops=peak_flops(device, "float32") or 0.0,
        memory_bandwidth=bandwidth,
        link_bandwidth=link,
        network_bandwidth=network,
    )


def _this_cpu() -> Gpu:
    """Return this machine as one device; its ranks share memory and cores."""
    return Gpu(
        name="cpu",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        bf16_flops=0.0,
        fp32_flops=_FLOPS_PER_CORE * (os.cpu_count() or 1),
        memory_bandwidth=20e9,
        link_bandwidth=5e9,
        network_bandwidth=1e9,
        per_machine=1,
    )


NAMES: tuple[str, ...] = (*_ROWS, "cpu")


def find_gpu(name: str) -> Gpu:
    """Return a device of the table, or one that a JSON file describes.

    Args:
        name: Name in the table, "cpu" for this machine, or path of a file with the fields of `Gpu`. A field `like` names a
            device of the table from which absent fields are taken.

    Raises:
        UserError: If the name is unknown, or the file is wrong.
    """
    if name.lower() == "cpu":
        return _this_cpu()
    if name.lower() in _ROWS:
        return _gpu(name.lower())
    if name.endswith(".json"):
        return _from_file(Path(name).expanduser())
    close = difflib.get_close_matches(name.lower(), NAMES, 1)
    hint = f"Did you mean {close[0]}?" if close else f"Use one of {', '.join(NAMES)}, or a JSON file."
    raise UserError(f"--gpu {name} is unknown. {hint}")


def _from_file(path: Path) -> Gpu:
    raw = read_json_object(path)
    values: dict[str, Any] = {"name": path.stem}
    like = raw.pop("like", None)
    if like is not None:
        values |= vars(find_gpu(str(like))) | {"name": path.stem}
    unknown = sorted(set(raw) - set(_fields()))
    if unknown:
        raise UserError(f"{path}: {', '.join(unknown)} is unknown. Use the fields {', '.join(_fields())}, and like.")
    wrong = [key for key, value in raw.items() if key != "name" and not _is_amount(value)]
    if wrong:
        raise UserError(f"{path}: {wrong[0]} must be a number of at least 0, not {raw[wrong[0]]!r}. Correct it.")
    values |= raw
    missing = [field.name for field in fields(Gpu) if field.default is MISSING and field.name not in values]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} is missing. Add it, or a field like with a name of the table.")
    values |= {name: int(values[name]) for name in ("memory_bytes", "per_machine") if name in values}
    return Gpu(**values)


def _fields() -> tuple[str, ...]:
    return tuple(field.name for field in fields(Gpu))


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
