"""Which way of fine-tuning a config chooses, and which fields belong to which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The fields that choose a method; without any, all weights are trained.
CHOICES = {
    "lora": "lora",
    "adalora": "adalora",
    "prefix_tuning": "prefix",
    "prompt_tuning": "prompt",
    "adapter": "adapter",
    "freeze_layers": "freeze",
    "trainable_modules": "freeze",
}
_ADDED = ("lora", "adalora", "prefix", "prompt", "adapter")
# Fields that mean something with these methods only.
SETTINGS: dict[str, tuple[str, ...]] = {
    "lora_rank": ("lora", "adalora"),
    "lora_alpha": ("lora", "adalora"),
    "lora_dropout": ("lora", "adalora"),
    "lora_target_modules": ("lora", "adalora"),
    "lora_path": ("lora", "adalora"),
    "rslora": ("lora",),
    "dora": ("lora",),
    "lora_plus_scale": ("lora",),
    "adalora_init_rank": ("adalora",),
    "adalora_warmup_ratio": ("adalora",),
    "adalora_final_ratio": ("adalora",),
    "adalora_budget_interval": ("adalora",),
    "adalora_orthogonal_weight": ("adalora",),
    "num_prefix_tokens": ("prefix",),
    "prefix_projection": ("prefix",),
    "prefix_path": ("prefix",),
    "num_prompt_tokens": ("prompt",),
    "adapter_size": ("adapter",),
    "modules_to_save": _ADDED,
}


def chosen(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Method -> the fields that choose it, of those that are on in `values`."""
    found: dict[str, list[str]] = {}
    for field, method in CHOICES.items():
        if values.get(field):
            found.setdefault(method, []).append(field)
    return found


def flags_of(methods: tuple[str, ...]) -> str:
    """The flags that choose these methods: "--lora or --adalora"."""
    return " or ".join(f"--{field}" for field, method in CHOICES.items() if method in methods)
