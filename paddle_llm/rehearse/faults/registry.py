"""The description of a fault, and the list in which each fault registers itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from paddle_llm.config.layout import Layout


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: Name for `Case.fault`.
        description: Description of what goes wrong, a sentence.
        quantity: Quantity in which the fault must be detected at `step`.
        unaffected: Quantities that are correct at that step; a correct loss makes a fault hard to notice.
        tensors: Regular expression; a tensor that matches is wrong in `quantity` at that step; "" for scalars.
        layout: Smallest layout in which the fault is detected.
        patched: Function that returns a context in which the code is broken; entered in each rank before the trainer is
            built.
        others_equal: Whether all other tensors are correct in `quantity`.
        step: First step at which the fault is detected.
        entry: Kind of the job in which it is detected: "pretrain", or "finetune" with LoRA.
    """

    name: str
    description: str
    quantity: str
    unaffected: tuple[str, ...]
    tensors: str
    layout: Layout
    patched: Callable[[], AbstractContextManager[None]]
    others_equal: bool = True
    step: int = 1
    entry: str = "pretrain"


FAULTS: dict[str, Fault] = {}

DP2, TP2, PP2 = Layout(data=2), Layout(tensor=2), Layout(pipeline=2)
SP2 = Layout(tensor=2, sequence_parallel=True)
STAGE1, STAGE2 = Layout(sharding=2, sharding_stage=1), Layout(sharding=2, sharding_stage=2)
# Quantities that are correct in a step with wrong gradients, and in one whose correct gradients are used wrongly.
FORWARD = ("loss",)
BACKWARD = ("loss", "gradient")
NORMS = r"norm\.weight$"


def fault(
    *,
    quantity: str,
    unaffected: tuple[str, ...],
    layout: Layout,
    tensors: str = "",
    others_equal: bool = True,
    step: int = 1,
    entry: str = "pretrain",
) -> Callable[[Callable[[], Iterator[None]]], Callable[[], Iterator[None]]]:
    """Return a decorator that registers a generator in FAULTS; the arguments are attributes of `Fault`.

    The generator breaks the code before its yield and repairs it afterwards. Its docstring describes the fault.
    """

    def register(function: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
        FAULTS[function.__name__] = Fault(
            name=function.__name__,
            description=function.__doc__ or "",
            quantity=quantity,
            unaffected=unaffected,
            tensors=tensors,
            layout=layout,
            patched=contextmanager(function),
            others_equal=others_equal,
            step=step,
            entry=entry,
        )
        return function

    return register
