"""Seconds of kernels on one device: matrix products, attention and element-wise operations.

A kernel takes as long as the slower of computing and moving its numbers (roofline, Williams et al., CACM 52(4), 2009), plus
a constant. A matrix product is computed in tiles of its result; tiles at the edges, and multiprocessors that the last wave
of tiles does not use, are lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from paddle_llm.planner.flops import peak_flops
from paddle_llm.planner.job import BYTES, Job
from paddle_llm.planner.time.machine import Machine

_KERNEL_SECONDS = 5e-6  # start and end of a kernel, in which the device is not busy
_WAVE_SECONDS = 4e-6  # of each wave of tiles: loading the first numbers, and writing the results
_FLASH_SHARE = 0.8  # FLOP/s of fused attention as a share of those of matrix products (FlashAttention-2, table 4)
_COLLECTIVE_LAUNCHES = 4.0  # time of the host to start a collective, in kernel launches


class Product(NamedTuple):
    """Matrix products of the same shape: [rows, inner] x [inner, columns].

    Attributes:
        rows, columns, inner: Shape.
        number: Number of products, which one kernel computes.
    """

    rows: float
    columns: float
    inner: float
    number: float = 1.0

    @property
    def flops(self) -> float:
        """Floating-point operations."""
        return 2.0 * self.rows * self.columns * self.inner * self.number

    @property
    def elements(self) -> float:
        """Numbers read and written."""
        each = self.rows * self.inner + self.inner * self.columns + self.rows * self.columns
        return each * self.number

    def backward(self, trained: bool = True) -> tuple[Product, ...]:
        """Return the products of the backward pass: the gradient of the left factor, and of the right one if wanted."""
        left = Product(self.rows, self.inner, self.columns, self.number)
        return (left, Product(self.inner, self.columns, self.rows, self.number)) if trained else (left,)


@dataclass(frozen=True)
class Work:
    """Kernels of a part of a step on one rank.

    Attributes:
        products: Matrix products.
        flash: FLOPs of fused attention kernels.
        traffic: Bytes that element-wise kernels read and write.
        kernels: Number of kernels besides matrix products and collectives.
        reduced: Bytes of each all-reduce over the tensor-parallel ranks.
        gathered: Bytes of each gather or reduce-scatter over them.
    """

    products: tuple[Product, ...] = ()
    flash: float = 0.0
    traffic: float = 0.0
    kernels: float = 0.0
    reduced: tuple[float, ...] = ()
    gathered: tuple[float, ...] = ()

    def __add__(self, other: Work) -> Work:
        return Work(
            self.products + other.products,
            self.flash + other.flash,
            self.traffic + other.traffic,
            self.kernels + other.kernels,
            self.reduced + other.reduced,
            self.gathered + other.gathered,
        )


class Seconds(NamedTuple):
    """Seconds of some work by kind.

    Attributes:
        products: Matrix products.
        attention: Fused attention.
        elementwise: Element-wise kernels.
        collectives: Collectives of tensor parallelism.
        host: Launches of all kernels, which the host does while the device works.
    """

    products: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    collectives: float = 0.0
    host: float = 0.0

    @property
    def device(self) -> float:
        """Seconds in which the device is busy."""
        return self.products + self.attention + self.elementwise + self.collectives

    @property
    def total(self) -> float:
        """Seconds of the work: the device waits for the host, or the host for the device."""
        return max(self.device, self.host)

    def plus(self, other: Seconds) -> Seconds:
        """Return the seconds of both, one after the other."""
        return Seconds(*(one + two for one, two in zip(self, other, strict=True)))

    def times(self, count: float) -> Seconds:
        """Return the seconds of repeated work."""
        return Seconds(*(one * count for one in self))


def peak_of(job: Job, machine: Machine) -> float:
    """Return the peak of a device in the type of the matrix products, FLOP/s; 0 if it does not have the type."""
    kind = job.precision.compute
    if kind == "float32":
        return machine.gpu.fp32_flops
    if machine.gpu.bf16_flops or kind == "bfloat16":
        return machine.gpu.bf16_flops
    return peak_flops(machine.gpu.name, kind) or 0.0  # cards with float16 only


def kernel_seconds(work: Work, job: Job, machine: Machine) -> Seconds:
    """Return the seconds of some work without its collectives; the host's part includes launching those.

    Args:
        work: Kernels.
        job: Training, for the type of the matrix products.
        machine: Device.
    """
    size, efficiency = BYTES[job.precision.compute], machine.efficiency
    speed = peak_of(job, machine) * efficiency.peak
    products = 0.0
    for product in work.products:
        computing = product.flops / (speed * tile_share(product, machine.tile, machine.multiprocessors))
        moving = product.elements * size / machine.gpu.memory_bandwidth
        products += max(computing, moving) + _KERNEL_SECONDS + _waves(product, machine) * _WAVE_SECONDS
    elementwise = work.traffic / (machine.gpu.memory_bandwidth * efficiency.bandwidth) + work.kernels * _KERNEL_SECONDS
    launches = len(work.products) + work.kernels + _COLLECTIVE_LAUNCHES * (len(work.reduced) + len(work.gathered))
    return Seconds(
        products=products,
        attention=work.flash / (speed * _FLASH_SHARE),
        elementwise=elementwise,
        host=launches * efficiency.launch,
    )


def _waves(product: Product, machine: Machine) -> float:
    """Return how often the multiprocessors begin new tiles of a matrix product; 1 if their number is not known."""
    if machine.multiprocessors is None:
        return 1.0
    rows, columns = machine.tile
    tiles = math.ceil(product.rows / rows) * math.ceil(product.columns / columns) * product.number
    return math.ceil(tiles / machine.multiprocessors)


def tile_share(product: Product, tile: tuple[int, int], multiprocessors: int | None) -> float:
    """Return the share of the multiprocessors' work that computes numbers of the result.

    Args:
        product: Shape.
        tile: Rows and columns of the part of the result that one multiprocessor computes at once.
        multiprocessors: Number of multiprocessors; None to count the edges of tiles only.
    """
    tiles = math.ceil(product.rows / tile[0]) * math.ceil(product.columns / tile[1]) * product.number
    if multiprocessors is not None:
        tiles = math.ceil(tiles / multiprocessors) * multiprocessors
    return product.rows * product.columns * product.number / (tiles * tile[0] * tile[1])
