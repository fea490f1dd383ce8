"""The one list of model families: which PaddleNLP classes build them and which parallelisms they offer.

Nothing here imports paddle: classes are named, and imported when a model is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paddle_llm.config.console import say
from paddle_llm.config.errors import UserError
from paddle_llm.config.layout import Layout
from paddle_llm.config.model_facts import ModelFacts


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        name: as `ModelFacts.model_type` says it.
        title: as people say it.
        config_class, model_class, pipeline_class: "module:attribute" in PaddleNLP; no pipeline class, no pipeline.
        sequence_parallel: whether PaddleNLP's layers can split activations along the sequence.
        recompute_granularities: what `--recompute_granularity` may say; PaddleNLP's layers ignore others in silence.
        dropout: whether its layers have dropout at all.
        residual_outputs: ends of the names of the matrices that write to the residual stream; random weights of these
            are scaled by 1 / sqrt(2 layers) where the family's authors did so.
    """

    name: str
    title: str
    config_class: str
    model_class: str
    pipeline_class: str | None = None
    sequence_parallel: bool = False
    recompute_granularities: tuple[str, ...] = ("full",)
    dropout: bool = False
    residual_outputs: tuple[str, ...] = ()

    def load(self, which: str) -> Any:
        """The class behind `config_class`, `model_class` or `pipeline_class`; imports PaddleNLP."""
        module, attribute = getattr(self, which).split(":")
        return getattr(importlib.import_module(module), attribute)

    def check_layout(self, layout: Layout) -> None:
        """Raise UserError when PaddleNLP's model cannot be laid out like this."""
        if layout.pipeline > 1 and self.pipeline_class is None:
            able = ", ".join(family.title for family in FAMILIES.values() if family.pipeline_class)
            raise UserError(
                f"{self.title} has no pipeline version in PaddleNLP, so pipeline_parallel_degree "
                f"{layout.pipeline} cannot be honoured; use tensor or sharding parallelism (a pipeline is offered by: "
                f"{able})"
            )
        if layout.sequence_parallel and layout.tensor > 1 and not self.sequence_parallel:
            raise UserError(f"{self.title} has no sequence parallelism in PaddleNLP; set sequence_parallel to false")


_ALL_GRANULARITIES = ("full", "full_attn", "core_attn")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="llama",
            title="LLaMA",
            config_class="paddlenlp.transformers.llama.configuration:LlamaConfig",
            model_class="paddlenlp.transformers.llama.modeling:LlamaForCausalLM",
            pipeline_class="paddlenlp.transformers.llama.modeling_pp:LlamaForCausalLMPipe",
            sequence_parallel=True,
            recompute_granularities=_ALL_GRANULARITIES,
            residual_outputs=("o_proj.weight", "down_proj.weight"),
        ),
        Family(
            name="chatglm",
            title="ChatGLM-6B",
            config_class="paddlenlp.transformers.chatglm.configuration:ChatGLMConfig",
            model_class="paddlenlp.transformers.chatglm.modeling:ChatGLMForCausalLM",
        ),
        Family(
            name="chatglm_v2",
            title="ChatGLM2/3",
            config_class="paddlenlp.transformers.chatglm_v2.configuration:ChatGLMv2Config",
            model_class="paddlenlp.transformers.chatglm_v2.modeling:ChatGLMv2ForCausalLM",
            pipeline_class="paddlenlp.transformers.chatglm_v2.modeling_pp:ChatGLMv2ForCausalLMPipe",
            sequence_parallel=True,
            recompute_granularities=_ALL_GRANULARITIES,
            dropout=True,
            residual_outputs=("self_attention.dense.weight", "dense_4h_to_h.weight"),
        ),
        Family(
            name="bloom",
            title="BLOOM",
            config_class="paddlenlp.transformers.bloom.configuration:BloomConfig",
            model_class="paddlenlp.transformers.bloom.modeling:BloomForCausalLM",
            dropout=True,
        ),
    )
}


def find_family(facts: ModelFacts) -> Family:
    """The family of a model folder.

    Raises:
        UserError: for a family that cannot be trained here, naming those that can.
    """
    if facts.model_type in FAMILIES:
        return FAMILIES[facts.model_type]
    known = ", ".join(f"{family.title} ({family.name})" for family in FAMILIES.values())
    raise UserError(f"model_type {facts.model_type!r} is not one that can be trained here; there are: {known}")


def sample_transform(facts: ModelFacts, tokenizer: Any = None) -> Callable[[Any], dict[str, Any]] | None:
    """How a window of S + 1 tokens becomes a sample of this family, or None where it is inputs and shifted labels.

    Says once how samples are cut where that is not the usual way.

    Args:
        tokenizer: PaddleNLP's; where it knows the marks too, its ids must be those of config.json.
    """
    if facts.model_type != "chatglm":
        return None
    from paddle_llm.models.chatglm_pretrain import NOTICE, chatglm_transform

    say(NOTICE)
    return chatglm_transform(facts, tokenizer)
