"""Tensors as gloo can take them.

Paddle 3.3.1 over gloo: int16, complex and float8 end the process ("Unknown DataType", exit code 255) and float16 sums
are silently wrong (1 + 1 = inf). What is only moved travels as bytes; what is added up is added up in a wider type.
"""

from __future__ import annotations

import ctypes

import numpy as np
import paddle
from paddle.base.core import ReduceOp

MOVED_AS_IT_IS = {
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
REDUCED_AS_IT_IS = MOVED_AS_IT_IS - {paddle.float16}
WIDER = {paddle.float16: paddle.float32, paddle.int16: paddle.int32}
COMPLEX = {paddle.complex64, paddle.complex128}
FLOATING = {paddle.float32, paddle.float64, paddle.float16, paddle.bfloat16} | COMPLEX


def memory_of(tensor: paddle.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, to read and to write."""
    size = tensor.size * tensor.element_size()
    if not size:
        return memoryview(b"")
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")


def as_movable(tensor: paddle.Tensor) -> paddle.Tensor:
    """The tensor (contiguous) itself, or a copy of its bytes where gloo does not move its type."""
    if tensor.dtype in MOVED_AS_IT_IS:
        return tensor
    return paddle.to_tensor(np.frombuffer(memory_of(tensor), dtype=np.uint8))


def moved_back(moved: paddle.Tensor, tensor: paddle.Tensor) -> None:
    """Put what arrived in `as_movable(tensor)` into the tensor."""
    if moved is not tensor:
        memory_of(tensor)[:] = moved.numpy().data


def as_reducible(tensor: paddle.Tensor, op: ReduceOp) -> paddle.Tensor:
    """The tensor's values (a copy where need be) in a type that gloo reduces rightly.

    Raises:
        TypeError: when this reduction of this type has no definition.
    """
    dtype = tensor.dtype
    if op == ReduceOp.AVG and dtype not in FLOATING:
        raise TypeError(
            f"the average of {_name(dtype)} tensors is not a {_name(dtype)}; reduce with SUM, or cast first"
        )
    if dtype in REDUCED_AS_IT_IS:
        return tensor
    if dtype in WIDER:
        return tensor.astype(WIDER[dtype])
    if dtype in COMPLEX and op in (ReduceOp.SUM, ReduceOp.AVG):
        return paddle.as_real(tensor)
    raise TypeError(f"{op.name} of {_name(dtype)} tensors is not defined here; cast to a wider type first")


def from_reducible(reduced: paddle.Tensor, dtype: paddle.dtype) -> paddle.Tensor:
    """Back from `as_reducible` to the type that the caller has."""
    if reduced.dtype == dtype:
        return reduced
    return paddle.as_complex(reduced) if dtype in COMPLEX else reduced.astype(dtype)


def _name(dtype: paddle.dtype) -> str:
    return str(dtype).removeprefix("paddle.")
