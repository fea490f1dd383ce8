"""Rules that need the model's shape: what a layout may split, how long a sequence may be."""

from __future__ import annotations

from paddle_llm.config.rules.core import Notice, Problem, Rule, Run
from paddle_llm.config.rules.settings import Findings

# Families that pretraining knows, and what PaddleNLP can do with each.
FAMILIES = ("llama", "chatglm", "chatglm_v2", "bloom")
_ALIASES = {"chatglm_v2": ("chatglm", "chatglm2", "chatglm3")}
_PIPELINE = ("llama", "chatglm_v2")
_SEQUENCE_PARALLEL = ("llama", "chatglm_v2")
_NO_DROPOUT = ("llama", "chatglm")
_REPLICATES_KV_HEADS = ("llama",)


def family(run: Run) -> Findings:
    found, asked = run.facts.model_type, run.config.model_type
    if found not in FAMILIES:
        yield Problem(f"{_model(run)} is of the family {found}: pretraining knows {', '.join(FAMILIES)}.")
    elif asked is not None and asked != found and asked not in _ALIASES.get(found, ()):
        yield Problem(f"model_type = {asked}, but {_model(run)} is of the family {found}: leave --model_type out.")


def families_with_pipeline(run: Run) -> Findings:
    found = run.facts.model_type
    if run.layout.pipeline > 1 and found in FAMILIES and found not in _PIPELINE:
        yield Problem(
            f"pipeline_parallel_degree = {run.layout.pipeline}: PaddleNLP has no pipeline for {found}. "
            f"Use tensor_parallel_degree or sharding; {' and '.join(_PIPELINE)} have pipelines."
        )


def families_with_sequence_parallel(run: Run) -> Findings:
    found = run.facts.model_type
    if run.config.sequence_parallel and found not in _SEQUENCE_PARALLEL:
        yield Problem(f"sequence_parallel is not offered for {found}, only for {', '.join(_SEQUENCE_PARALLEL)}.")


def heads(run: Run) -> Findings:
    facts, tensor = run.facts, run.layout.tensor
    if facts.num_attention_heads % tensor:
        yield Problem(
            f"tensor_parallel_degree = {tensor} does not divide the {facts.num_attention_heads} attention heads of "
            f"{_model(run)}: use one of {_divisors(facts.num_attention_heads)}."
        )
    elif facts.num_key_value_heads % tensor:
        yield from _uneven_key_value_heads(run)
    if facts.intermediate_size % tensor:
        yield Problem(
            f"tensor_parallel_degree = {tensor} does not divide the feed-forward width {facts.intermediate_size} of {_model(run)}."
        )


def _uneven_key_value_heads(run: Run) -> Findings:
    facts, tensor = run.facts, run.layout.tensor
    what = f"{facts.num_key_value_heads} key-value heads over {tensor} tensor parallel ranks"
    if facts.model_type not in _REPLICATES_KV_HEADS:
        yield Problem(
            f"{what}: PaddleNLP cannot split them for {facts.model_type}: use at most {facts.num_key_value_heads}."
        )
    elif run.config.fuse_attention_qkv or (
        run.config.fuse_attention_qkv is None and facts.raw.get("fuse_attention_qkv")
    ):
        yield Problem(f"{what} cannot stand in one matrix: leave out --fuse_attention_qkv, or use fewer ranks.")
    else:
        yield Notice(f"{what}: every rank keeps all of them.")


def head_width(run: Run) -> Findings:
    facts = run.facts
    if facts.model_type == "llama" and facts.head_dim * facts.num_attention_heads != facts.hidden_size:
        yield Problem(
            f"{_model(run)}: {facts.num_attention_heads} heads of {facts.head_dim} are not the hidden size "
            f"{facts.hidden_size}: PaddleNLP cannot build that."
        )


def layers(run: Run) -> Findings:
    stages, virtual, count = run.layout.pipeline, run.layout.virtual_stages, run.facts.num_hidden_layers
    if count < stages:
        yield Problem(
            f"pipeline_parallel_degree = {stages}, but {_model(run)} has {count} layers: a stage would be empty."
        )
    elif virtual > 1 and count % (stages * virtual):
        yield Problem(
            f"virtual_pp_degree = {virtual} x pipeline_parallel_degree = {stages} does not divide the {count} layers of "
            f"{_model(run)}."
        )
    elif count % stages:
        yield Notice(
            f"{count} layers over {stages} pipeline stages: some stages have one more, and the others wait for them."
        )


def vocabulary(run: Run) -> Findings:
    size, tensor = run.facts.vocab_size, run.layout.tensor
    if size % tensor:
        padded = -(-size // tensor) * tensor
        yield Notice(
            f"vocabulary padded from {size} to {padded} so that {tensor} tensor parallel ranks share it evenly; "
            "the added rows take no part in the loss and are not saved."
        )


def positions(run: Run) -> Findings:
    facts, length = run.facts, run.config.max_seq_length
    limit = facts.max_position_embeddings
    if limit is None or length <= limit or facts.rope_is_scaled:
        return
    yield Problem(
        f"max_seq_length = {length} is more than the {limit} positions of {_model(run)}: "
        "shorten it, or set max_position_embeddings or rope_scaling in the model's config.json."
    )


def fewer_layers(run: Run) -> Findings:
    if run.config.num_hidden_layers is not None and run.config.continue_training:
        yield Problem(
            "num_hidden_layers changes the model, so its weights cannot be loaded: leave out --continue_training."
        )


def layers_not_recomputed(run: Run) -> Findings:
    count = run.facts.num_hidden_layers
    beyond = [layer for layer in run.config.no_recompute_layers or [] if not 0 <= layer < count]
    if beyond:
        yield Problem(f"no_recompute_layers = {beyond[0]}: {_model(run)} has the layers 0 to {count - 1}.")


def dropout(run: Run) -> Findings:
    if run.facts.model_type not in _NO_DROPOUT:
        return
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if getattr(run.config, name):
            yield Problem(
                f"{name} = {getattr(run.config, name)}: {run.facts.model_type} has no dropout in PaddleNLP: leave it out."
            )


def _model(run: Run) -> str:
    return run.config.model_name_or_path


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)


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
