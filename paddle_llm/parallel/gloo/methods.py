"""The table of methods that are set on `ProcessGroupGloo`, a pybind class that accepts Python methods.

On a CPU there is one stream, so each `*_on_calc_stream` variant is the collective itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paddle_llm.parallel.gloo import collectives, reduction, transfers

_WITH_CALC_STREAM: dict[str, Callable[..., Any]] = {
    "all_reduce": reduction.all_reduce,
    "all_gather": collectives.all_gather,
    "all_gather_into_tensor": collectives.all_gather_into_tensor,
    "all_gather_partial": collectives.all_gather_partial,
    "all_to_all": transfers.all_to_all,
    "all_to_all_single": transfers.all_to_all_single,
    "all_to_all_tensor": transfers.all_to_all_tensor,
    "broadcast": collectives.broadcast,
    "recv": transfers.recv,
    "recv_partial": transfers.recv_partial,
    "reduce": reduction.reduce,
    "reduce_scatter": reduction.reduce_scatter,
    "reduce_scatter_tensor": reduction.reduce_scatter_tensor,
    "scatter": collectives.scatter,
    "scatter_tensor": collectives.scatter_tensor,
    "send": transfers.send,
    "send_partial": transfers.send_partial,
}
METHODS: dict[str, Callable[..., Any]] = {
    **{name + suffix: method for name, method in _WITH_CALC_STREAM.items() for suffix in ("", "_on_calc_stream")},
    "allreduce": reduction.all_reduce,
    "alltoall": lambda group, tensors, outs: transfers.all_to_all(group, outs, tensors),
    "alltoall_single": lambda group, tensor, out, in_sizes, out_sizes: transfers.all_to_all_single(
        group, out, tensor, out_sizes, in_sizes
    ),
    "barrier": collectives.barrier,
    "gather": collectives.gather,
    "_start_coalescing": transfers.start_coalescing,
    "_end_coalescing": transfers.end_coalescing,
}
