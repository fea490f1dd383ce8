"""Rules that need the shape of the model: how a layout may split it, and how long a sequence may be."""

from __future__ import annotations

from paddle_llm.config.rules.engine import Findings, Notice, Problem, Rule, Run, Unknown
from paddle_llm.config.rules.model_layout import (
    layer_problems,
    pipeline_problems,
    sequence_parallel_problems,
    tensor_problems,
)
from paddle_llm.core.counts import counted
from paddle_llm.families import FAMILIES
from paddle_llm.families.facts import ModelFacts


def family(run: Run) -> Findings:
    """The family of the model is supported, and `model_type` agrees."""
    found, requested = run.facts.model_type, run.config.model_type
    if found not in FAMILIES:
        supported = ", ".join(FAMILIES)
        yield Problem(
            f"{_model(run)} belongs to the family {found}, which is not supported. Use a model of "
            f"one of these families: {supported}."
        )
    elif requested is not None and requested != found and requested not in FAMILIES[found].aliases:
        yield Problem(f"model_type = {requested}, but {_model(run)} belongs to the family {found}. Drop --model_type.")


def families_with_pipeline(run: Run) -> Findings:
    """The family has a pipeline."""
    yield from map(Problem, pipeline_problems(_supported_facts(run), run.layout))


def families_with_sequence_parallel(run: Run) -> Findings:
    """The family has sequence parallelism."""
    yield from map(Problem, sequence_parallel_problems(_supported_facts(run), run.layout))


def heads(run: Run) -> Findings:
    """The tensor degree divides the heads; report replicated key-value heads."""
    facts, tensor = _supported_facts(run), run.layout.tensor
    problems = list(tensor_problems(facts, run.layout, fuse_attention_qkv=run.config.fuse_attention_qkv))
    yield from map(Problem, problems)
    if not problems and facts.num_key_value_heads % tensor:
        yield Notice(
            f"{counted(facts.num_key_value_heads, 'key-value head')} for {tensor} tensor parallel ranks: every rank keeps all key-value heads."
        )


def head_width(run: Run) -> Findings:
    """LLaMA's heads add up to the hidden size."""
    facts = run.facts
    family = FAMILIES.get(facts.model_type)
    divided = family is not None and family.capabilities.needs_divided_hidden_size
    if divided and facts.head_dim * facts.num_attention_heads != facts.hidden_size:
        yield Problem(
            f"{_model(run)}: {facts.num_attention_heads} heads of width {facts.head_dim} do not add up to hidden_size = "
            f"{facts.hidden_size}, which PaddleNLP cannot build. Use another model."
        )


def layers(run: Run) -> Findings:
    """Every stage has a layer; report stages of different sizes."""
    stages, count = run.layout.pipeline, run.facts.num_hidden_layers
    problems = list(layer_problems(run.facts, run.layout))
    yield from map(Problem, problems)
    if not problems and count % stages:
        yield Notice(
            f"{count} layers for {stages} pipeline stages: some stages have one more layer, and the others wait for them."
        )


def vocabulary(run: Run) -> Findings:
    """Report a vocabulary that is padded for tensor parallelism."""
    size, tensor = run.facts.vocab_size, run.layout.tensor
    if size % tensor:
        padded = -(-size // tensor) * tensor
        yield Notice(
            f"vocabulary padded from {size} to {padded} to split it evenly over {tensor} tensor parallel ranks. The added rows do "
            "not affect the loss and are not saved."
        )


def positions(run: Run) -> Findings:
    """Sequences are not longer than the positions of the model."""
    facts, config, limit = run.facts, run.config, run.facts.position_limit
    if limit is None:
        return
    name, length = "max_seq_length", config.max_seq_length
    if run.entry == "finetune":  # positions restart in each sample of a packed row
        name, length = "max_length", config.max_length
    prompt = config.num_prompt_tokens if config.prompt_tuning else 0
    if length + prompt > limit:
        scaled = f" ({facts.max_position_embeddings}, scaled)" if limit != facts.max_position_embeddings else ""
        total = f" plus num_prompt_tokens = {prompt}" if prompt else ""
        yield Problem(
            f"{name} = {length}{total} exceeds the {limit} positions of {_model(run)}{scaled}. "
            f"Reduce {name}, or set max_position_embeddings or rope_scaling in the model's config.json."
        )


def fewer_layers(run: Run) -> Findings:
    """`num_hidden_layers` is not combined with loading weights."""
    if run.config.num_hidden_layers is not None and run.config.continue_training:
        remedy = "Drop --continue_training" if run.entry == "pretrain" else "Use --continue_training 0"
        yield Problem(
            f"num_hidden_layers changes the model, so its weights cannot be loaded. {remedy}, or drop num_hidden_layers."
        )


def layers_not_recomputed(run: Run) -> Findings:
    """`no_recompute_layers` names existing layers."""
    count = run.facts.num_hidden_layers
    beyond = [layer for layer in run.config.no_recompute_layers or [] if not 0 <= layer < count]
    if beyond:
        yield Problem(f"no_recompute_layers = {beyond[0]} is not a layer of {_model(run)}. Use 0 to {count - 1}.")


def dropout(run: Run) -> Findings:
    """Dropout is given only for families that have it."""
    title = FAMILIES[_supported_facts(run).model_type].title
    if FAMILIES[run.facts.model_type].config_json.dropout:
        return
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if getattr(run.config, name):
            yield Problem(f"{name} = {getattr(run.config, name)}: {title} has no dropout in PaddleNLP. Drop the flag.")


def _model(run: Run) -> str:
    return run.config.model_name_or_path


def _supported_facts(run: Run) -> ModelFacts:
    """Return the shape of a model of a supported family.

    Raises:
        Unknown: If the family is not supported, which the rule `family` reports.
    """
    if run.facts.model_type not in FAMILIES:
        raise Unknown("family")
    return run.facts


RULES: list[Rule] = [
    family,
    families_with_pipeline,
    families_with_sequence_parallel,
    heads,
    head_width,
    layers,
    vocabulary,
    positions,
    fewer_layers,
    layers_not_recomputed,
    dropout,
]
