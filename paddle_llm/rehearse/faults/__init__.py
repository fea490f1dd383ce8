"""Faults injected on purpose: a test of the oracle. Each breaks one piece of real code in the ranks of a layout.

What is replaced are methods of fleet and of our own parallel, model and training code, never a record: a fault must go
the way that a real one would go. Most of them have happened, in Paddle or in another trainer.
"""

from paddle_llm.rehearse.faults import gradients, inputs, updates  # noqa: F401  (they enter themselves)
from paddle_llm.rehearse.faults.registry import FAULTS, Fault

__all__ = ["FAULTS", "Fault"]
