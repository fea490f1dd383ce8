"""Counts copies of tensors from the device to the host, at the Python methods that make them.

On a GPU each of these waits until the device has computed the value. On a CPU they cost nothing and are called alike.
Operations that wait inside of C++ (`nonzero`, `masked_select`) are not seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle_llm

METHODS = ("item", "numpy", "tolist", "__float__", "__bool__", "__array__", "__int__")
_ROOT = Path(paddle_llm.__file__).parents[1]
_TENSOR_METHODS = ("paddle/base/dygraph/", "paddle/tensor/")  # where these methods themselves are


@dataclass(frozen=True)
class Copy:
    """One call.

    Attributes:
        step: what `step_of()` returned.
        method: one of METHODS.
        place: "package/file.py:line" of the caller.
        callers: the functions on the stack, the caller first.
    """

    step: int
    method: str
    place: str
    callers: tuple[str, ...]

    @property
    def ours(self) -> bool:
        return self.place.startswith("paddle_llm/")


@contextmanager
def counted_copies(step_of: Callable[[], int]) -> Iterator[list[Copy]]:
    """The copies that this process makes inside, in order. A method that calls another one counts once."""
    import paddle

    found: list[Copy] = []
    inside = [False]
    tensor = paddle.base.core.eager.Tensor
    originals = {name: getattr(tensor, name) for name in METHODS}

    def spy(name: str) -> Callable[..., Any]:
        original = originals[name]

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            if inside[0]:
                return original(self, *args, **kwargs)
            inside[0] = True
            try:
                found.append(_copy(step_of(), name))
                return original(self, *args, **kwargs)
            finally:
                inside[0] = False

        return counted

    for name in METHODS:
        setattr(tensor, name, spy(name))
    try:
        yield found
    finally:
        for name, original in originals.items():
            setattr(tensor, name, original)


def _copy(step: int, method: str) -> Copy:
    frame = sys._getframe(2)
    while any(part in frame.f_code.co_filename for part in _TENSOR_METHODS):
        frame = frame.f_back
    place, callers = f"{_in_package(frame.f_code.co_filename)}:{frame.f_lineno}", []
    while frame is not None:
        callers.append(frame.f_code.co_name)
        frame = frame.f_back
    return Copy(step, method, place, tuple(callers[:12]))


def _in_package(file: str) -> str:
    """The path within site-packages or this repository."""
    return file.rpartition("/site-packages/")[2].removeprefix(f"{_ROOT}/")
