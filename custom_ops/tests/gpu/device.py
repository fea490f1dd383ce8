"""Runs the CUDA kernels on torch's tensors, through ctypes.

Shapes: _RH = [rows, hidden], _H = [hidden], _R = [rows].
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import rms_norm_native as native
import torch

WHERE = "cuda"  # torch's name of the device; tests without a GPU replace it
TYPES = {torch.float32: native.FLOAT32, torch.float16: native.FLOAT16, torch.bfloat16: native.BFLOAT16}
NAMES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    rounding: int = native.ROUND_FP32
    epsilon: float = 1e-6


PLAIN = Setting()


def free_bytes() -> int:
    """Return the memory of the card that torch can still use, except for 5%."""
    free, _ = torch.cuda.mem_get_info()
    return int(0.95 * (free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()))


def pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def stride(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(0)


class Device:
    """The kernels on torch's current stream."""

    def __init__(self, path: Path):
        self.library = native.load_cuda(path)

    def _check(self, code: int) -> None:
        if code:
            raise RuntimeError(self.library.pllm_rms_norm_message_cuda(code).decode())

    def _shape(self, x_RH: torch.Tensor, weight_H: torch.Tensor, setting: Setting) -> native.Shape:
        types = (TYPES[x_RH.dtype], TYPES[weight_H.dtype])
        return native.Shape(x_RH.shape[0], x_RH.shape[1], setting.epsilon, *types, setting.rounding)

    def forward_into(
        self, x_RH, weight_H, y_RH, invvar_R, residual_RH=None, sum_RH=None, setting: Setting = PLAIN
    ) -> None:
        args = native.Forward(
            self._shape(x_RH, weight_H, setting),
            pointer(x_RH),
            stride(x_RH),
            pointer(residual_RH),
            stride(residual_RH),
            pointer(weight_H),
            pointer(sum_RH),
            stride(sum_RH),
            pointer(y_RH),
            stride(y_RH),
            pointer(invvar_R),
        )
        stream = torch.cuda.current_stream().cuda_stream
        self._check(self.library.pllm_rms_norm_forward_cuda(ctypes.byref(args), stream))

    def workspace(self, x_RH, weight_H, want_dweight: bool = True, setting: Setting = PLAIN) -> torch.Tensor:
        """Return the workspace of backward, filled with poison."""
        size = self.library.pllm_rms_norm_workspace_cuda(self._shape(x_RH, weight_H, setting), int(want_dweight))
        self._check(max(-size, 0))
        return torch.full((size,), 0xFF, dtype=torch.uint8, device=WHERE)

    def backward_into(
        self,
        dy_RH,
        x_RH,
        weight_H,
        invvar_R,
        dx_RH,
        dweight_H,
        workspace,
        dsum_RH=None,
        setting: Setting = PLAIN,
    ) -> None:
        args = native.Backward(
            self._shape(x_RH, weight_H, setting),
            pointer(dy_RH),
            stride(dy_RH),
            pointer(x_RH),
            stride(x_RH),
            pointer(weight_H),
            pointer(invvar_R),
            pointer(dsum_RH),
            stride(dsum_RH),
            pointer(dx_RH),
            stride(dx_RH),
            pointer(dweight_H),
            pointer(workspace),
            workspace.numel(),
        )
        stream = torch.cuda.current_stream().cuda_stream
        self._check(self.library.pllm_rms_norm_backward_cuda(ctypes.byref(args), stream))
