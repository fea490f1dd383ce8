"""What PaddleNLP's models can be laid out like: one row per family, and what a layout asks of a model's numbers.

The reader's rules tell all of it at once, before paddle is imported; the models ask the same before they are built.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from paddle_llm.config.layout import Layout
from paddle_llm.config.model_facts import ModelFacts

_ALL_GRANULARITIES = ("full", "full_attn", "core_attn")


@dataclass(frozen=True)
class Abilities:
    """What PaddleNLP offers for one family.

    Attributes:
        title: as people say it.
        aliases: other values of --model_type that mean it.
        pipeline: whether it has a pipeline version.
        sequence_parallel: whether its layers can split activations along the sequence.
        recompute_granularities: what `--recompute_granularity` may say; its layers ignore others in silence.
        dropout: whether its layers have dropout at all.
        fused_rms_norm: whether its norm is an RMSNorm that can be fused.
        replicates_key_value_heads: whether every tensor rank keeps all of them where they do not divide by the degree.
    """

    title: str
    aliases: tuple[str, ...] = ()
    pipeline: bool = False
    sequence_parallel: bool = False
    recompute_granularities: tuple[str, ...] = ("full",)
    dropout: bool = False
    fused_rms_norm: bool = False
    replicates_key_value_heads: bool = False


ABILITIES: dict[str, Abilities] = {
    "llama": Abilities(
        title="LLaMA",
        pipeline=True,
        sequence_parallel=True,
        recompute_granularities=_ALL_GRANULARITIES,
        fused_rms_norm=True,
        replicates_key_value_heads=True,
    ),
    "chatglm": Abilities(title="ChatGLM-6B"),
    "chatglm_v2": Abilities(
        title="ChatGLM2/3",
        aliases=("chatglm", "chatglm2", "chatglm3"),
        pipeline=True,
        sequence_parallel=True,
        recompute_granularities=_ALL_GRANULARITIES,
        dropout=True,
        fused_rms_norm=True,
    ),
    "bloom": Abilities(title="BLOOM", pipeline=True, dropout=True),
    "opt": Abilities(title="OPT", dropout=True),
    "glm": Abilities(title="GLM", dropout=True),
    "qwen2": Abilities(
        title="Qwen2",
        pipeline=True,
        sequence_parallel=True,
        recompute_granularities=_ALL_GRANULARITIES,
        fused_rms_norm=True,
    ),
}


def layout_problems(facts: ModelFacts, layout: Layout, *, fuse_attention_qkv: bool | None = None) -> Iterator[str]:
    """Everything in `layout` that PaddleNLP's model of this shape cannot do: what, and what to do.

    Args:
        fuse_attention_qkv: query, key and value stand in one matrix; None: what config.json says.
    """
    if facts.model_type not in ABILITIES:
        return
    for check in (pipeline_problems, sequence_parallel_problems, layer_problems):
        yield from check(facts, layout)
    yield from tensor_problems(facts, layout, fuse_attention_qkv=fuse_attention_qkv)


def pipeline_problems(facts: ModelFacts, layout: Layout) -> Iterator[str]:
    if layout.pipeline > 1 and not ABILITIES[facts.model_type].pipeline:
        able = " and ".join(one.title for one in ABILITIES.values() if one.pipeline)
        yield (
            f"pipeline_parallel_degree = {layout.pipeline}: PaddleNLP has no pipeline for {ABILITIES[facts.model_type].title}. "
            f"Use tensor_parallel_degree or sharding; {able} have pipelines."
        )


def sequence_parallel_problems(facts: ModelFacts, layout: Layout) -> Iterator[str]:
    if layout.sequence_parallel and not ABILITIES[facts.model_type].sequence_parallel:
        able = " and ".join(one.title for one in ABILITIES.values() if one.sequence_parallel)
        yield f"sequence_parallel is not offered for {ABILITIES[facts.model_type].title}, only for {able}."


def layer_problems(facts: ModelFacts, layout: Layout) -> Iterator[str]:
    """Every stage, and every chunk of a virtual stage, needs a layer; chunks must be of one size (Paddle)."""
    stages, virtual, count = layout.pipeline, layout.virtual_stages, facts.num_hidden_layers
    if count < stages:
        yield (
            f"pipeline_parallel_degree = {stages}, but the model has {count} layers: a stage would be empty. "
            f"Use at most {count} stages."
        )
    elif virtual > 1 and stages > 1 and count % (stages * virtual):
        able = [str(n) for n in range(2, count // stages + 1) if count % (stages * n) == 0]
        instead = f"use {' or '.join(able)}" if able else "leave it out"
        yield (
            f"virtual_pp_degree = {virtual} x pipeline_parallel_degree = {stages} does not divide the model's {count} layers: "
            f"{instead}."
        )


def tensor_problems(facts: ModelFacts, layout: Layout, *, fuse_attention_qkv: bool | None = None) -> Iterator[str]:
    """Heads, key-value heads and the feed-forward width are divided by the tensor degree."""
    tensor, heads, groups = layout.tensor, facts.num_attention_heads, facts.num_key_value_heads
    fused = facts.raw.get("fuse_attention_qkv") if fuse_attention_qkv is None else fuse_attention_qkv
    if heads % tensor:
        yield (
            f"tensor_parallel_degree = {tensor} does not divide the model's {heads} attention heads: "
            f"use one of {_divisors(heads)}."
        )
    elif groups % tensor:
        what = f"{groups} key-value heads over {tensor} tensor parallel ranks"
        if not ABILITIES[facts.model_type].replicates_key_value_heads:
            title = ABILITIES[facts.model_type].title
            yield f"{what}: PaddleNLP cannot split them for {title}: use one of {_divisors(groups)}."
        elif fused:
            yield f"{what} cannot stand in one matrix: leave out --fuse_attention_qkv, or use one of {_divisors(groups)}."
    if facts.intermediate_size % tensor:
        yield f"tensor_parallel_degree = {tensor} does not divide the model's feed-forward width {facts.intermediate_size}."


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
