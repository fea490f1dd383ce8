"""The rules between fields, checked before Paddle is imported: one small function per rule, one module per topic."""

from __future__ import annotations

from paddle_llm.config.rules import instructions, layout, method, model, paths, schedule, settings
from paddle_llm.config.rules import paddle_switches as words
from paddle_llm.config.rules.engine import Rule

RULES: list[Rule] = [
    *settings.RULES,
    *paths.RULES,
    *instructions.RULES,
    *method.RULES,
    *schedule.RULES,
    *layout.RULES,
    *words.RULES,
    *model.RULES,
]
