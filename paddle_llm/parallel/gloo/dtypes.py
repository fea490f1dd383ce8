"""Data types over gloo.

Paddle 3.3.1 over gloo: int16, complex and float8 end the process ("Unknown DataType", exit code 255), and sums of
float16 are wrong (1 + 1 = inf). Here a tensor of such a type is moved as bytes and reduced in a wider type.
"""

from __future__ import annotations

import ctypes

import numpy as np
import paddle
from paddle.base.core import ReduceOp

MOVABLE = {
    paddle.float32,
    paddle.float64,
    paddle.float16,
    paddle.bfloat16,
    paddle.int8,
    paddle.uint8,
    paddle.int32,
    paddle.int64,
    paddle.bool,
}
REDUCIBLE = MOVABLE - {paddle.float16}
WIDER = {paddle.float16: paddle.float32, paddle.int16: paddle.int32}
COMPLEX = {paddle.complex64, paddle.complex128}
FLOATING = {paddle.float32, paddle.float64, paddle.float16, paddle.bfloat16} | COMPLEX


def memory_of(tensor: paddle.Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, to read and to write."""
    size = tensor.size * tensor.element_size()
    if not size:
        return memoryview(b"")
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")


def as_movable(tensor: paddle.Tensor) -> paddle.Tensor:
    """Return a contiguous tensor itself, or a copy of its bytes if gloo does not move its type."""
    if tensor.dtype in MOVABLE:
        return tensor
    return paddle.to_tensor(np.frombuffer(memory_of(tensor), dtype=np.uint8))


def copy_back(moved: paddle.Tensor, tensor: paddle.Tensor) -> None:
    """Copy what was received in `as_movable(tensor)` to `tensor`."""
    if moved is not tensor:
        memory_of(tensor)[:] = moved.numpy().data


def as_reducible(tensor: paddle.Tensor, op: ReduceOp) -> paddle.Tensor:
    """Return a tensor's values in a type that gloo reduces correctly: the tensor itself, or a copy.

    Raises:
        TypeError: If the reduction is not defined for the type.
    """
    dtype = tensor.dtype
    if op == ReduceOp.AVG and dtype not in FLOATING:
        raise TypeError(f"the average of {_name(dtype)} tensors is not an integer. Use SUM, or cast the tensors first.")
    if dtype in REDUCIBLE:
        return tensor
    if dtype in WIDER:
        return tensor.astype(WIDER[dtype])
    if dtype in COMPLEX and op in (ReduceOp.SUM, ReduceOp.AVG):
        return paddle.as_real(tensor)
    raise TypeError(f"{op.name} is not defined for {_name(dtype)} tensors. Cast them to a wider type first.")


def from_reducible(reduced: paddle.Tensor, dtype: paddle.dtype) -> paddle.Tensor:
    """Return the result of a reduction of `as_reducible` in the caller's type."""
    if reduced.dtype == dtype:
        return reduced
    return paddle.as_complex(reduced) if dtype in COMPLEX else reduced.astype(dtype)


def _name(dtype: paddle.dtype) -> str:
    return str(dtype).removeprefix("paddle.")
