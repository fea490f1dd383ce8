"""How much of a device's peak, bandwidth and links a training reaches, and what a framework adds."""

from __future__ import annotations

from dataclasses import dataclass

from paddle_llm.planner.gpus import Gpu


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The constants of a machine that are fitted to measured step times (`benchmarks/planner_time.py`).

    Attributes:
        peak: Share of the peak FLOP/s that a large matrix product reaches.
        launch: Seconds that the host needs to launch one kernel.
        bandwidth: Share of the memory bandwidth that element-wise kernels reach.
        link: Share of a link's bandwidth that a large collective reaches.
    """

    peak: float
    launch: float
    bandwidth: float
    link: float


@dataclass(frozen=True, kw_only=True)
class Framework:
    """What depends on the program that trains, not on the machine.

    Attributes:
        update_kernels: Kernels of the clipping and the optimizer for each weight; 0 if one kernel updates all weights.
        whole_gradients: Whether gradients are reduced weight by weight to the rank that owns the weight. Otherwise they
            are scattered over the ranks in one operation.
        gathers_again: Whether sequence parallelism gathers the inputs of matrix products again in the backward pass.
            Otherwise they are kept.
    """

    update_kernels: float
    whole_gradients: bool
    gathers_again: bool


PADDLE = Framework(update_kernels=3, whole_gradients=True, gathers_again=False)
MEGATRON = Framework(update_kernels=0, whole_gradients=False, gathers_again=True)


@dataclass(frozen=True)
class Machine:
    """A device, its efficiency, and the program that trains.

    Attributes:
        gpu: Device and links.
        efficiency: Fitted constants.
        framework: Program that trains.
    """

    gpu: Gpu
    efficiency: Efficiency
    framework: Framework = PADDLE

    @property
    def multiprocessors(self) -> int | None:
        """Number of streaming multiprocessors, over which the tiles of a matrix product are divided; None if unknown."""
        return next((count for name, count in _MULTIPROCESSORS.items() if self.gpu.name.startswith(name)), None)

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of the part of a matrix product that one multiprocessor computes at once."""
        return (256, 128) if self.gpu.name.startswith(_LARGE_TILES) else (128, 128)


_LARGE_TILES = ("h100", "h800", "h200", "h20", "b200")  # Hopper and Blackwell (CUTLASS's default tiles)
_MULTIPROCESSORS = {  # NVIDIA's architecture whitepapers
    "a100": 108, "a800": 108, "h100": 132, "h800": 132, "h200": 132, "h20": 78, "b200": 148, "l40s": 142, "l20": 92,
    "a40": 84, "a30": 56, "a10": 72, "4090": 128, "3090": 82, "v100": 80, "t4": 40,
}  # fmt: skip

# Fitted by benchmarks/planner_time.py to trainings with Megatron-LM; see benchmarks/results/planner_time.md.
FITTED: dict[str, Efficiency] = {
    "a100-80g": Efficiency(peak=0.840, launch=40.4e-6, bandwidth=0.797, link=0.765),
    "b200": Efficiency(peak=0.471, launch=40.4e-6, bandwidth=0.797, link=0.765),
}
_OTHERS = "a100-80g"


def machine_of(gpu: Gpu) -> tuple[Machine, str]:
    """Return the machine of a device, and a message about its calibration."""
    if gpu.name in FITTED:
        return Machine(gpu, FITTED[gpu.name]), (
            f"The step time is calibrated with trainings of others with Megatron-LM on {gpu.name}. It was not measured with "
            "this library."
        )
    return Machine(gpu, FITTED[_OTHERS]), (
        f"The step time is not calibrated for {gpu.name}: it is assumed to reach the same shares of its peak, bandwidth and "
        f"links as {_OTHERS}."
    )
