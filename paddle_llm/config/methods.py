"""What each way of fine-tuning can be combined with: one row per method, and what a layout asks of it.

The reader's rules tell all of it at once, before paddle is imported; `peft.attach` asks the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paddle_llm.config.layout import Layout
from paddle_llm.families import FAMILIES

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


@dataclass(frozen=True)
class Composition:
    """What a method goes together with. Tensor and sequence parallelism and sharding stages 1 and 2 suit all of them.

    Attributes:
        title: as people say it.
        no_pipeline: why it is not offered with pipeline stages; "" where it is.
        no_stage3: why not with sharding stage 3.
        no_packing: why not with packed rows (`zero_padding`).
        mergeable: whether it can be added to the base weights.
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
        no_pipeline="its budget is divided over the layers of all stages at once",
        no_stage3="its budget needs every gradient together with its weight",
        mergeable=True,
    ),
    "prompt": Composition(
        "prompt tuning",
        no_pipeline="it lengthens what the first stage reads, which the others must know of",
        no_packing="the prompt would stand before the first sample of a row only",
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
    """Everything that keeps a method from running like this: what, and what to do.

    Args:
        method: a key of METHODS.
        family: of the model, as `ModelFacts.model_type`; None where it is not known yet.
        packed: `zero_padding`.
    """
    row, known = METHODS[method], FAMILIES.get(family or "")
    if method == "lora" and dora:
        yield from _dora_problems(layout, lora_dropout)
    if layout.pipeline > 1 and row.no_pipeline:
        able = ", ".join(name for name, one in METHODS.items() if not one.no_pipeline)
        yield (
            f"{row.title} with pipeline_parallel_degree = {layout.pipeline}: {row.no_pipeline}. Use tensor_parallel_degree or "
            f"sharding; with pipeline stages there are: {able}."
        )
    stage3 = layout.sharding > 1 and layout.sharding_stage == 3
    if method == "prefix" and prefix_projection and (stage3 or layout.pipeline > 1):
        what = "--sharding stage3" if stage3 else f"pipeline_parallel_degree = {layout.pipeline}"
        yield f"--prefix_projection with {what}: all layers share its weights. Leave the projection out, or use --sharding stage2."
    elif stage3 and row.no_stage3:
        yield f"{row.title} with --sharding stage3: {row.no_stage3}. Use --sharding stage2."
    if method == "prefix" and prefix_projection and known and not known.capabilities.prefix_projection:
        yield f"--prefix_projection is not offered for {known.title}, whose prefix is hidden states. Leave the projection out."
    if packed and row.no_packing:
        yield f"{row.title} with --zero_padding: {row.no_packing}. Leave --zero_padding out."
    if method == "prompt" and known and not known.capabilities.prompt_tuning:
        yield (
            f"{row.title} is not offered for {known.title}: its batches spell out two-dimensional positions, which the prompt "
            "would shift. Use --prefix_tuning or --lora."
        )
    if packed and method == "prefix" and known and not known.capabilities.packed_prefix:
        yield (
            f"{row.title} with --zero_padding is not offered for {known.title}: its attention takes the prefix for part of "
            "the row."
        )


def _dora_problems(layout: Layout, dropout: float) -> Iterator[str]:
    if layout.sharding > 1 and layout.sharding_stage == 3:
        yield "--dora with --sharding stage3: DoRA needs the norm of whole weights in each step. Use --sharding stage2."
    if layout.tensor > 1 and dropout:
        yield (
            f"--dora with tensor_parallel_degree = {layout.tensor} and lora_dropout = {dropout}: DoRA multiplies the dropped input by "
            "the whole weight. Set lora_dropout to 0, or tensor_parallel_degree to 1."
        )
