"""Rules between fields, checked before Paddle is imported: one small function per rule, one module per topic.

The docstring of a rule states what a correct run satisfies. The rule yields a problem or a notice otherwise.
"""

from __future__ import annotations

from paddle_llm.config.rules import instructions, layout, method, model, paddle_switches, paths, schedule, settings
from paddle_llm.config.rules.engine import Rule

# The order of the rules is the order of their messages.
RULES: list[Rule] = [
    *settings.RULES,
    *paths.RULES,
    *instructions.RULES,
    *method.RULES,
    *schedule.RULES,
    *layout.RULES,
    *paddle_switches.RULES,
    *model.RULES,
]
