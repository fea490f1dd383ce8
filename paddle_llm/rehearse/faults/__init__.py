"""Faults that are injected to test the oracle. Each of them breaks one piece of code in the ranks of a layout.

A fault replaces a method of fleet or of our own parallel, model or training code, never a record, so that it has the
same effects as a real one. Most of them have occurred in Paddle or in another trainer.
"""

from paddle_llm.rehearse.faults import gradients, inputs, updates  # noqa: F401  (they register themselves)
from paddle_llm.rehearse.faults.registry import FAULTS, Fault

__all__ = ["FAULTS", "Fault"]
