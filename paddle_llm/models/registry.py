"""The one list of model families: which PaddleNLP classes build them and which parallelisms they offer.

Nothing here imports paddle: classes are named, and imported when a model is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paddle_llm.config.families import ABILITIES, Abilities, layout_problems
from paddle_llm.config.layout import Layout
from paddle_llm.config.model_facts import ModelFacts
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        name: as `ModelFacts.model_type` says it.
        config_class, model_class, pipeline_class: "module:attribute"; no pipeline class, no pipeline.
        residual_outputs: ends of the names of the matrices that write to the residual stream; random weights of these
            are scaled by 1 / sqrt(2 layers) where the family's authors did so.
    """

    name: str
    config_class: str
    model_class: str
    pipeline_class: str | None = None
    residual_outputs: tuple[str, ...] = ()

    def load(self, which: str) -> Any:
        """The class behind `config_class`, `model_class` or `pipeline_class`; imports PaddleNLP."""
        module, attribute = getattr(self, which).split(":")
        return getattr(importlib.import_module(module), attribute)

    @property
    def abilities(self) -> Abilities:
        """What PaddleNLP offers for it; the reader's rules read the same."""
        return ABILITIES[self.name]

    @property
    def title(self) -> str:
        """As people say it."""
        return self.abilities.title


def check_layout(facts: ModelFacts, layout: Layout, *, fuse_attention_qkv: bool | None = None) -> None:
    """Raise UserError when PaddleNLP's model cannot be laid out like this; for a run that did not come through the reader."""
    problems = list(layout_problems(facts, layout, fuse_attention_qkv=fuse_attention_qkv))
    if problems:
        raise UserError("\n".join(problems))


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="llama",
            config_class="paddlenlp.transformers.llama.configuration:LlamaConfig",
            model_class="paddlenlp.transformers.llama.modeling:LlamaForCausalLM",
            pipeline_class="paddlenlp.transformers.llama.modeling_pp:LlamaForCausalLMPipe",
            residual_outputs=("o_proj.weight", "down_proj.weight"),
        ),
        Family(
            name="chatglm",
            config_class="paddlenlp.transformers.chatglm.configuration:ChatGLMConfig",
            model_class="paddlenlp.transformers.chatglm.modeling:ChatGLMForCausalLM",
        ),
        Family(
            name="chatglm_v2",
            config_class="paddlenlp.transformers.chatglm_v2.configuration:ChatGLMv2Config",
            model_class="paddlenlp.transformers.chatglm_v2.modeling:ChatGLMv2ForCausalLM",
            pipeline_class="paddlenlp.transformers.chatglm_v2.modeling_pp:ChatGLMv2ForCausalLMPipe",
            residual_outputs=("self_attention.dense.weight", "dense_4h_to_h.weight"),
        ),
        Family(
            name="bloom",
            config_class="paddlenlp.transformers.bloom.configuration:BloomConfig",
            model_class="paddlenlp.transformers.bloom.modeling:BloomForCausalLM",
            pipeline_class="paddle_llm.models.patches.bloom_pipeline:BloomForCausalLMPipe",
        ),
        Family(
            name="opt",
            config_class="paddlenlp.transformers.opt.configuration:OPTConfig",
            model_class="paddlenlp.transformers.opt.modeling:OPTForCausalLM",
        ),
        Family(
            name="glm",
            config_class="paddlenlp.transformers.glm.configuration:GLMConfig",
            model_class="paddlenlp.transformers.glm.modeling:GLMForConditionalGeneration",
        ),
        Family(
            name="qwen2",
            config_class="paddlenlp.transformers.qwen2.configuration:Qwen2Config",
            model_class="paddlenlp.transformers.qwen2.modeling:Qwen2ForCausalLM",
            pipeline_class="paddlenlp.transformers.qwen2.modeling_pp:Qwen2ForCausalLMPipe",
            residual_outputs=("o_proj.weight", "down_proj.weight"),
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
