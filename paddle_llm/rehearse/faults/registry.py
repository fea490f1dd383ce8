"""What a fault is, and the list that each enters itself into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from paddle_llm.config.layout import Layout


@dataclass(frozen=True)
class Fault:
    """One way to be wrong.

    Attributes:
        name: for `Case.fault`.
        imitates: what goes wrong, in a sentence.
        shows: the quantity in which it must be seen at `step`.
        spares: quantities that it leaves right at that step; a loss that looks fine is what makes a bug silent.
        tensors: regular expression; a tensor that matches is wrong in `shows` at that step; "" for scalars.
        alone: no other tensor is.
        layout: the smallest that shows it.
        patched: breaks the code for as long as the context lasts; entered in each rank before the trainer is built.
        step: the first at which anything is seen.
        entry: of the case that shows it: "pretrain", or "finetune" with LoRA.
    """

    name: str
    imitates: str
    shows: str
    spares: tuple[str, ...]
    tensors: str
    layout: Layout
    patched: Callable[[], AbstractContextManager]
    alone: bool = True
    step: int = 1
    entry: str = "pretrain"


FAULTS: dict[str, Fault] = {}

DP2, TP2, PP2 = Layout(data=2), Layout(tensor=2), Layout(pipeline=2)
SP2 = Layout(tensor=2, sequence_parallel=True)
STAGE1, STAGE2 = Layout(sharding=2, sharding_stage=1), Layout(sharding=2, sharding_stage=2)
# What is right in a step whose gradients are wrong, and in one whose gradients are right but wrongly used.
FORWARD = ("loss",)
BACKWARD = ("loss", "gradient")
NORMS = r"norm\.weight$"


def fault(
    imitates: str,
    *,
    shows: str,
    spares: tuple[str, ...],
    layout: Layout,
    tensors: str = "",
    alone: bool = True,
    step: int = 1,
    entry: str = "pretrain",
):
    """Enter a generator into FAULTS: what it does before its yield breaks the code."""

    def enter(function: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
        name = function.__name__
        FAULTS[name] = Fault(
            name, imitates, shows, spares, tensors, layout, contextmanager(function), alone, step, entry
        )
        return function

    return enter
