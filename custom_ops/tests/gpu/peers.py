"""The implementations that are timed: the CUDA kernels, torch's RMSNorm and Liger's.

Each is a function `(given, what) -> run`. `run` has no arguments and does the work once; it is None if the library does not have
the operation. Shapes as in device.py.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from device import Device

EPSILON = 1e-6
# Number of matrices of the size of x that the operation must read and write.
MOVED = {
    "forward": 2,
    "backward": 3,
    "forward + backward": 5,
    "forward, residual": 4,
    "backward, residual": 4,
}
Run = Callable[[], object]


@dataclass(frozen=True)
class Given:
    x_RH: torch.Tensor
    residual_RH: torch.Tensor
    dy_RH: torch.Tensor
    dsum_RH: torch.Tensor
    weight_H: torch.Tensor

    def leaves(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x and weight with gradients."""
        return self.x_RH.detach().requires_grad_(), self.weight_H.detach().requires_grad_()


def ours(device: Device) -> Callable[[Given, str], Run]:
    def prepared(given: Given, what: str) -> Run:
        x, weight, dy = given.x_RH, given.weight_H, given.dy_RH
        y, dx, total = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        dweight, invvar = torch.empty_like(weight), torch.empty(x.shape[0], device="cuda")
        workspace = device.workspace(x, weight)
        forward = (x, weight, y, invvar)
        backward = (dy, x, weight, invvar, dx, dweight, workspace)
        device.forward_into(*forward)

        def both() -> None:
            device.forward_into(*forward)
            device.backward_into(*backward)

        return {
            "forward": lambda: device.forward_into(*forward),
            "backward": lambda: device.backward_into(*backward),
            "forward + backward": both,
            "forward, residual": lambda: device.forward_into(*forward, given.residual_RH, total),
            "backward, residual": lambda: device.backward_into(*backward, given.dsum_RH),
        }[what]

    return prepared


def of_torch(given: Given, what: str) -> Run | None:
    """Time F.rms_norm. For the backward pass alone, call the operator that autograd calls (torch 2.8 and later)."""
    x, weight, dy, shape = given.x_RH, given.weight_H, given.dy_RH, given.weight_H.shape
    leaves = given.leaves()
    if what == "forward":
        return lambda: torch.nn.functional.rms_norm(x, shape, weight, EPSILON)
    if what == "backward":
        _, rstd = torch.ops.aten._fused_rms_norm(x, shape, weight, EPSILON)
        return lambda: torch.ops.aten._fused_rms_norm_backward(dy, x, shape, rstd, weight, [True, True])
    if what == "forward + backward":
        return lambda: torch.autograd.grad(
            torch.nn.functional.rms_norm(leaves[0], shape, leaves[1], EPSILON), leaves, dy
        )
    return None


def of_liger(given: Given, what: str) -> Run | None:
    """Time Liger's norm as LLaMA uses it. By default its backward pass writes dx over dy."""
    norm = importlib.import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction
    leaves = given.leaves()
    if what == "forward":
        return lambda: norm.apply(given.x_RH, given.weight_H, EPSILON)
    if what == "backward":
        context = norm.apply(*leaves, EPSILON).grad_fn
        return lambda: norm.backward(context, given.dy_RH)
    if what == "forward + backward":
        return lambda: torch.autograd.grad(norm.apply(*leaves, EPSILON), leaves, given.dy_RH)
    return None


def why_no_liger(folder: Path) -> str:
    """Return why Liger cannot be imported and how to install it; "" if it can.

    The wheel that LIGER_WHEEL names is unpacked into `folder`.
    """
    wheel = os.environ.get("LIGER_WHEEL")
    try:
        if wheel:
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(folder)
            sys.path.insert(0, str(folder))
        importlib.import_module("liger_kernel.ops.rms_norm")
    except Exception as error:  # the other libraries are timed without it
        how = "run `pip download --no-deps liger-kernel` on a machine with a network, and set LIGER_WHEEL to the path of the wheel"
        return f"{type(error).__name__}: {error} ({how})"
    print(f"Liger {importlib.metadata.version('liger_kernel')}")
    return ""
