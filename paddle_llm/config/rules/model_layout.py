"""Requirements of a layout on the shape and the family of a model.

The rules of the reader report all problems at once before Paddle is imported; `check_layout` checks a model that is built
without the reader.
"""

from __future__ import annotations

from collections.abc import Iterator

from paddle_llm.config.layout import Layout
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES
from paddle_llm.families.facts import ModelFacts


def check_layout(facts: ModelFacts, layout: Layout, *, fuse_attention_qkv: bool | None = None) -> None:
    """Raise UserError if PaddleNLP's model cannot run in this layout."""
    problems = list(layout_problems(facts, layout, fuse_attention_qkv=fuse_attention_qkv))
    if problems:
        raise UserError("\n".join(problems))


def layout_problems(facts: ModelFacts, layout: Layout, *, fuse_attention_qkv: bool | None = None) -> Iterator[str]:
    """Yield a message for everything in `layout` that PaddleNLP's model of this shape cannot do.

    Args:
        facts: Shape of the model.
        layout: Degrees of parallelism.
        fuse_attention_qkv: Whether query, key and value are one matrix; None: as in config.json.
    """
    if facts.model_type not in FAMILIES:
        return
    for check in (pipeline_problems, sequence_parallel_problems, layer_problems):
        yield from check(facts, layout)
    yield from tensor_problems(facts, layout, fuse_attention_qkv=fuse_attention_qkv)


def pipeline_problems(facts: ModelFacts, layout: Layout) -> Iterator[str]:
    """Yield a message if the family has no pipeline in PaddleNLP."""
    if layout.pipeline > 1 and not FAMILIES[facts.model_type].pipeline_class:
        able = " and ".join(one.title for one in FAMILIES.values() if one.pipeline_class)
        yield (
            f"pipeline_parallel_degree = {layout.pipeline}: PaddleNLP has no pipeline for {FAMILIES[facts.model_type].title}. "
            f"Use tensor_parallel_degree or sharding; {able} have pipelines."
        )


def sequence_parallel_problems(facts: ModelFacts, layout: Layout) -> Iterator[str]:
    """Yield a message if the family has no sequence parallelism in PaddleNLP."""
    if layout.sequence_parallel and not FAMILIES[facts.model_type].capabilities.sequence_parallel:
        able = " and ".join(one.title for one in FAMILIES.values() if one.capabilities.sequence_parallel)
        yield f"sequence_parallel is not supported for {FAMILIES[facts.model_type].title}, only for {able}. Drop sequence_parallel."


def layer_problems(facts: ModelFacts, layout: Layout) -> Iterator[str]:
    """Yield a message if a stage or virtual stage would be empty, or virtual stages would differ in size, which Paddle refuses."""
    stages, virtual, count = layout.pipeline, layout.virtual_stages, facts.num_hidden_layers
    if count < stages:
        yield (
            f"pipeline_parallel_degree = {stages}, but the model has {count} layers: a stage would be empty. "
            f"Use at most {count} stages."
        )
    elif virtual > 1 and stages > 1 and count % (stages * virtual):
        able = [str(n) for n in range(2, count // stages + 1) if count % (stages * n) == 0]
        remedy = f"Use virtual_pp_degree {' or '.join(able)}" if able else "Drop virtual_pp_degree"
        yield (
            f"virtual_pp_degree = {virtual} x pipeline_parallel_degree = {stages} does not divide the {count} layers of the "
            f"model. {remedy}."
        )


def tensor_problems(facts: ModelFacts, layout: Layout, *, fuse_attention_qkv: bool | None = None) -> Iterator[str]:
    """Yield a message for each of heads, key-value heads and feed-forward width that the tensor degree does not divide."""
    tensor, heads, groups = layout.tensor, facts.num_attention_heads, facts.num_key_value_heads
    fused = facts.raw.get("fuse_attention_qkv") if fuse_attention_qkv is None else fuse_attention_qkv
    if heads % tensor:
        yield (
            f"tensor_parallel_degree = {tensor} does not divide the {heads} attention heads of the model. "
            f"Use one of {_divisors(heads)}."
        )
    elif groups % tensor:
        split = f"{counted(groups, 'key-value head')} for {tensor} tensor parallel ranks"
        if not FAMILIES[facts.model_type].capabilities.replicates_key_value_heads:
            title = FAMILIES[facts.model_type].title
            yield f"{split}: PaddleNLP cannot split them for {title}. Use one of {_divisors(groups)}."
        elif fused:
            yield f"{split} cannot be in one matrix. Drop --fuse_attention_qkv, or use one of {_divisors(groups)}."
    if facts.intermediate_size % tensor:
        yield (
            f"tensor_parallel_degree = {tensor} does not divide the feed-forward width {facts.intermediate_size} of the model. "
            "Use one of its divisors."
        )


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
