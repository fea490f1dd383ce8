"""Which layers an `adapter_config.json` of PEFT names, by the rules of PEFT 0.17 (tuners_utils.py, utils/other.py).

Names of modules are Hugging Face's, without a trailing `.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES

ALL_LINEAR = "all-linear"


def is_target(
    adapter_config: dict[str, Any], module: str, *, family: str | None, is_linear: bool, is_head: bool
) -> bool:
    """Return whether PEFT puts LoRA on a module.

    Args:
        adapter_config: Contents of adapter_config.json.
        module: Name of the module.
        family: Family of the base; None if unknown (target_modules null then names every module).
        is_linear: Whether the module is a linear layer.
        is_head: Whether it computes the logits.
    """
    if _is_excluded(adapter_config, module):
        return False
    targets = adapter_config.get("target_modules")
    if targets is None:
        if family is None:
            return True
        targets = list(FAMILIES[family].network.default_lora_targets)
    if isinstance(targets, str):
        if targets.lower() == ALL_LINEAR:
            return is_linear and not is_head
        return re.fullmatch(targets, module) is not None
    if module in targets:  # a full name: PEFT ignores layers_to_transform
        return True
    return _ends_with_one(module, targets) and _is_in_chosen_block(adapter_config, module)


def pattern_value(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern of rank_pattern or alpha_pattern that matches a module."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def saved_modules(adapter_config: dict[str, Any], weights: Iterable[str]) -> dict[str, list[str]]:
    """Return entry of modules_to_save -> weights of the base that PEFT saves for it.

    Args:
        adapter_config: Contents of adapter_config.json.
        weights: Hugging Face's names of the base's weights.
    """
    weights = list(weights)
    return {
        entry: [name for name in weights if any(module.endswith(entry) for module in _modules_above(name))]
        for entry in adapter_config.get("modules_to_save") or []
    }


@contextmanager
def report_invalid_patterns(folder: Path) -> Iterator[None]:
    """Turn an invalid regular expression in adapter_config.json into a UserError.

    Args:
        folder: Adapter folder, for the message.

    Raises:
        UserError: If the body evaluates an invalid expression.
    """
    try:
        yield
    except re.error as error:
        raise UserError(
            f"{folder}: invalid regular expression in adapter_config.json: {error.pattern!r} ({error}). "
            "Correct target_modules, exclude_modules, modules_to_save, rank_pattern or alpha_pattern."
        ) from None


def _is_excluded(adapter_config: dict[str, Any], module: str) -> bool:
    excluded = adapter_config.get("exclude_modules")
    if excluded and isinstance(excluded, str) and re.fullmatch(excluded, module):
        return True
    if excluded and not isinstance(excluded, str) and _ends_with_one(module, excluded):
        return True
    saved = adapter_config.get("modules_to_save") or []
    return any(re.match(rf"(^|.*\.){entry}($|\..*)", module) for entry in saved)


def _ends_with_one(module: str, endings: Iterable[str]) -> bool:
    return any(module == ending or module.endswith(f".{ending}") for ending in endings)


def _is_in_chosen_block(adapter_config: dict[str, Any], module: str) -> bool:
    numbers = adapter_config.get("layers_to_transform")
    if numbers is None or numbers == []:
        return True
    patterns = adapter_config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf".*\.{pattern}\.(\d+)\.", module)
        if found is not None:
            return int(found.group(1)) in (numbers if isinstance(numbers, list) else [numbers])
    return False


def _modules_above(weight: str) -> list[str]:
    parts = weight.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]
