"""Corrections of PaddleNLP's networks (3.0.0b4): one file per family, what they share in `shared/`, and one `apply`.

No code of PaddleNLP is copied. Attributes of its modules and classes are replaced through `core/upstream.py`, which
records the reason of each. `python -m paddle_llm.models.patches` prints all of them.
"""

from __future__ import annotations

import importlib
from typing import Any

from paddle_llm.families import FAMILIES

_applied: set[str] = set()


def apply(family: str, device: str) -> None:
    """Correct the classes of a family, before one of its networks is built. A second call does nothing.

    Args:
        family: Name of the family.
        device: "cpu" or "gpu".
    """
    from paddle_llm.models.patches.shared import cpu_switch

    # 1. Faster operations on a CPU. The replacements of step 2 contain them and check at each call whether they are
    #    enabled.
    if device == "cpu":
        cpu_switch.enable()
    if family in _applied:
        return
    _applied.add(family)
    # 2. The family's replacements, in the order of its file. No two files replace the same attribute, so the order
    #    of the families does not matter.
    importlib.import_module(FAMILIES[family].patches).apply()


def apply_to_network(family: str, model: Any) -> None:
    """Correct what depends on the layout and the switches of one network, after it is built.

    Args:
        family: Name of the family.
        model: Network; changed in place.
    """
    correct = getattr(importlib.import_module(FAMILIES[family].patches), "apply_to_network", None)
    if correct is not None:
        correct(model)
