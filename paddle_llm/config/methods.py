"""Methods of fine-tuning: which fields choose and configure them, and what they can be combined with.

The rules of the config report violations before Paddle is imported; `peft.attach` checks the same conditions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES

# Field -> the method that it chooses. Without any of them, all weights are trained.
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
# Field -> the methods that it has an effect with.
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
    """Return the chosen methods.

    Args:
        values: Value by field.

    Returns:
        Fields that choose a method, by method.
    """
    found: dict[str, list[str]] = {}
    for field, method in CHOICES.items():
        if values.get(field):
            found.setdefault(method, []).append(field)
    return found


def flags_of(methods: tuple[str, ...]) -> str:
    """Return the flags that choose these methods, such as "--lora or --adalora"."""
    return " or ".join(f"--{field}" for field, method in CHOICES.items() if method in methods)


@dataclass(frozen=True)
class Composition:
    """What a method can be combined with. All of them support tensor and sequence parallelism and sharding stages 1 and 2.

    Attributes:
        title: Name in messages.
        no_pipeline: Reason why pipeline stages are not supported; empty if they are.
        no_stage3: Reason why sharding stage 3 is not supported; empty if it is.
        no_packing: Reason why packed rows (`zero_padding`) are not supported; empty if they are.
        mergeable: Whether the method can be merged into the base weights.
    """

    title: str
    no_pipeline: str = ""
    no_stage3: str = ""
    no_packing: str = ""
    mergeable: bool = False


METHODS: dict[str, Composition] = {
    "full": Composition("fine-tuning of all weights"),
    "lora": Composition("LoRA", mergeable=True),
    "prefix": Composition("prefix tuning"),
    "adapter": Composition("adapters"),
    "freeze": Composition("freezing"),
    "adalora": Composition(
        "AdaLoRA",
        no_pipeline="its rank budget spans the layers of all stages",
        no_stage3="its rank budget needs complete weights and gradients",
        mergeable=True,
    ),
    "prompt": Composition(
        "prompt tuning",
        no_pipeline="it lengthens the input of the first stage, which the other stages do not know",
        no_packing="only the first sample of a row would have the prompt",
    ),
}


def method_problems(
    method: str,
    layout: Layout,
    family: str | None = None,
    *,
    packed: bool = False,
    prefix_projection: bool = False,
    dora: bool = False,
    lora_dropout: float = 0.0,
) -> Iterator[str]:
    """Yield a message for each condition of the method that the run violates.

    Args:
        method: Key of METHODS.
        layout: Layout of the job.
        family: Family of the model, as in `ModelFacts.model_type`; None if it is not known yet.
        packed: Value of `zero_padding`.
        prefix_projection: Value of this field.
        dora: Value of this field.
        lora_dropout: Value of this field.
    """
    row, known = METHODS[method], FAMILIES.get(family or "")
    if method == "lora" and dora:
        yield from _dora_problems(layout, lora_dropout)
    if layout.pipeline > 1 and row.no_pipeline:
        supported = ", ".join(name for name, one in METHODS.items() if not one.no_pipeline)
        yield (
            f"{row.title} with pipeline_parallel_degree = {layout.pipeline}: {row.no_pipeline}. Use tensor_parallel_degree or "
            f"sharding, or one of the methods that support a pipeline: {supported}."
        )
    stage3 = layout.sharding > 1 and layout.sharding_stage == 3
    if method == "prefix" and prefix_projection and (stage3 or layout.pipeline > 1):
        cause = "--sharding stage3" if stage3 else f"pipeline_parallel_degree = {layout.pipeline}"
        yield f"--prefix_projection with {cause}: all layers share its weights. Drop it, or use --sharding stage2."
    elif stage3 and row.no_stage3:
        yield f"{row.title} with --sharding stage3: {row.no_stage3}. Use --sharding stage2."
    if method == "prefix" and prefix_projection and known and not known.capabilities.prefix_projection:
        yield f"--prefix_projection is not supported for {known.title}, whose prefix consists of hidden states. Drop it."
    if packed and row.no_packing:
        yield f"{row.title} with --zero_padding: {row.no_packing}. Drop --zero_padding."
    if method == "prompt" and known and not known.capabilities.prompt_tuning:
        yield (
            f"{row.title} is not supported for {known.title}: its batches contain two-dimensional positions, which the prompt "
            "would shift. Use --prefix_tuning or --lora."
        )
    if packed and method == "prefix" and known and not known.capabilities.packed_prefix:
        yield (
            f"{row.title} with --zero_padding is not supported for {known.title}: its attention treats the prefix as part of "
            "the row. Drop --zero_padding."
        )


def _dora_problems(layout: Layout, dropout: float) -> Iterator[str]:
    if layout.sharding > 1 and layout.sharding_stage == 3:
        yield "--dora with --sharding stage3: DoRA needs the norm of complete weights in each step. Use --sharding stage2."
    if layout.tensor > 1 and dropout:
        yield (
            f"--dora with tensor_parallel_degree = {layout.tensor} and lora_dropout = {dropout}: DoRA multiplies the input after "
            "dropout by the complete weight. Set lora_dropout to 0, or tensor_parallel_degree to 1."
        )


def any_pattern_matches(patterns: tuple[str, ...], name: str) -> bool:
    """Return whether any pattern matches a dotted name; see `pattern_matches`."""
    return any(pattern_matches(pattern, name) for pattern in patterns)


def pattern_matches(pattern: str, name: str) -> bool:
    """Return whether a pattern matches a dotted name.

    `q_proj` and `self_attn.q_proj` match "llama.layers.0.self_attn.q_proj"; so does the regular expression `.*q_proj`.

    Raises:
        UserError: If the pattern is neither a name nor a regular expression.
    """
    if name == pattern or name.endswith(f".{pattern}"):
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise UserError(
            f"{pattern!r} is neither the name of a layer nor a regular expression: {error}. Correct the pattern."
        ) from error
