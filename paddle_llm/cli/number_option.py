"""Option types for whole and for finite numbers."""

from __future__ import annotations

import math
from typing import Any

import click


class WholeNumber(click.IntRange):
    """A range of whole numbers. The messages of `click.IntRange` call it an `integer range`."""

    name = "whole number"


class FiniteNumber(click.FloatRange):
    """A range of finite numbers. `click.FloatRange` accepts `nan`, because it passes all comparisons, and `inf`."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert a value to a number.

        Raises:
            click.BadParameter: If it is not a number, not finite, or outside the range.
        """
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number
