"""The one mapping of weight names and layouts: PaddleNLP in one process, its pipelines, Hugging Face, fused matrices.

A weight's canonical name is the one of PaddleNLP's model in one process (`llama.layers.0.self_attn.q_proj.weight`).
Hugging Face keeps a matrix as [out, in], PaddleNLP as [in, out]; embeddings are alike. ChatGLM and BLOOM keep their
query_key_value fused, in the same order of heads in both libraries, so that only the transpose differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ForeignTensor:
    """Where Hugging Face keeps a weight: its name there, and whether it is stored transposed."""

    name: str
    transpose: bool


@dataclass(frozen=True)
class Piece:
    """Columns [start, stop) of a matrix are columns [source_start, source_start + stop - start) of another one."""

    start: int
    stop: int
    source: str
    source_start: int


# family -> (beginning of the canonical name, beginning of Hugging Face's), first match wins.
_PREFIXES: dict[str, tuple[tuple[str, str], ...]] = {
    "llama": (("llama.", "model."), ("lm_head.", "lm_head.")),
    "chatglm": (("chatglm.transformer.", "transformer."),),
    "chatglm_v2": (("chatglm_v2.", "transformer."),),
    "bloom": (("bloom.", "transformer."),),
    "opt": (
        ("opt.embeddings.word_embeddings.", "model.decoder.embed_tokens."),
        ("opt.embeddings.position_embeddings.", "model.decoder.embed_positions."),
        ("opt.embeddings.", "model.decoder."),
        ("opt.", "model."),
    ),
    "glm": (("glm.", "glm."),),
    "qwen2": (("qwen2.", "model."), ("lm_head.", "lm_head.")),
}
# Parts in the middle of a name that Hugging Face calls otherwise.
_INFIXES: dict[str, tuple[tuple[str, str], ...]] = {
    "opt": (
        (".norm1.", ".self_attn_layer_norm."),
        (".norm2.", ".final_layer_norm."),
        (".linear1.", ".fc1."),
        (".linear2.", ".fc2."),
    )
}
_INFIX_BEGINS = {"opt": "model.decoder."}  # where Hugging Face's names of these families begin
_TABLES = ("embeddings.weight", "embed_tokens.weight")  # ends of the names of what is indexed, not multiplied
# The embedding, and the head that is tied to it: its name in PaddleNLP, its name at Hugging Face.
EMBEDDINGS = {
    "llama": "llama.embed_tokens.weight",
    "chatglm": "chatglm.transformer.word_embeddings.weight",
    "chatglm_v2": "chatglm_v2.embedding.word_embeddings.weight",
    "bloom": "bloom.word_embeddings.weight",
    "opt": "opt.embeddings.word_embeddings.weight",
    "glm": "glm.word_embeddings.weight",
    "qwen2": "qwen2.embed_tokens.weight",
}
HEADS = {
    "llama": "lm_head.weight",
    "chatglm_v2": "chatglm_v2.output_layer.weight",
    "qwen2": "lm_head.weight",
}
_TIED_HEADS = {  # GLM's network has none
    "llama": "lm_head.weight",
    "chatglm": "lm_head.decoder_weight",
    "bloom": "lm_head.decoder_weight",
    "opt": "lm_head.decoder_weight",
    "qwen2": "lm_head.weight",
}
TIED_BY_CONFIGURATION = ("llama", "qwen2")  # the other families are always tied, or never
FOREIGN_TIED_HEAD = "lm_head.weight"
# Left out by a checkpoint that was saved from the bare network, without its head.
BASE_PREFIXES = {family: f"{family}." for family in EMBEDDINGS}
FOREIGN_BASE_PREFIXES = {
    "llama": "model.",
    "chatglm": "",
    "chatglm_v2": "",
    "bloom": "transformer.",
    "opt": "model.",
    "glm": "glm.",
    "qwen2": "model.",
}
# What a file of Hugging Face's has and PaddleNLP's never begins with, where there is such a beginning.
FOREIGN_SIGNS = {
    "llama": "model.",
    "chatglm_v2": "transformer.",
    "bloom": "transformer.",
    "opt": "model.",
    "qwen2": "model.",
}
# An attribute of the parameters that fine-tuning puts beside those of the network (peft).
ADDED = "is_added"
# Buffers that some checkpoints carry and nobody needs.
IGNORED_ENDS = ("inv_freq", "scale_mask_softmax.causal_mask", "attn.masked_bias")


def canonical_name(family: str, name: str, *, tied: bool) -> str:
    """The canonical name of what a model's `state_dict()` calls `name`: the same, but a tied head is the embedding."""
    return EMBEDDINGS[family] if tied and name == _TIED_HEADS.get(family) else name


def canonical_parameters(model: Any, family: str) -> Iterator[tuple[str, Any]]:
    """(canonical name, parameter) of everything that this rank holds; a tied head of its own stage comes as embedding.

    What fine-tuning has added is not among it: `peft.trainable_tensors` lists that.

    Under sharding stage 3 a parameter's values are there only while it is `visiting` (parallel/zero/stage3.py).

    Args:
        model: a PretrainedModel or PipelineLayer of PaddleNLP.
    """
    tied = is_tied(family, model.config)
    seen: set[int] = set()
    # Without hooks: sharding stage 3 has one that refuses to hand out weights which are not there.
    for name, parameter in model.state_dict(use_hook=False).items():
        if id(parameter) in seen or name.endswith(IGNORED_ENDS) or getattr(parameter, ADDED, False):
            continue
        seen.add(id(parameter))
        yield canonical_name(family, name, tied=tied), parameter


def is_tied(family: str, config: Any) -> bool:
    """Whether the head is the embedding: by configuration in LLaMA and Qwen2, always in the others but ChatGLM2."""
    if family in TIED_BY_CONFIGURATION:
        return bool(config.tie_word_embeddings)
    return family != "chatglm_v2"


def hugging_face(family: str, name: str, ndim: int) -> ForeignTensor:
    """Hugging Face's name for a canonical name, and whether it stores the transpose."""
    for begin, foreign in _PREFIXES[family]:
        if name.startswith(begin):
            spelled = foreign + name[len(begin) :]
            for ours, theirs in _INFIXES.get(family, ()):
                spelled = spelled.replace(ours, theirs)
            return ForeignTensor(spelled, ndim == 2 and not name.endswith(_TABLES))
    raise KeyError(f"{name} is no weight of {family}")


def foreign_spellings(family: str, name: str) -> tuple[str, ...]:
    """Hugging Face's name, and the same as a checkpoint of the bare network (without a head) spells it."""
    prefix = FOREIGN_BASE_PREFIXES[family]
    return (name, name[len(prefix) :]) if prefix and name.startswith(prefix) else (name,)


def native_infixes(name: str) -> str:
    """A name of Hugging Face's with the parts in its middle as PaddleNLP calls them; its beginning stays."""
    family = next((family for family, begin in _INFIX_BEGINS.items() if name.startswith(begin)), "")
    spelled = f"{name}."
    for ours, theirs in _INFIXES.get(family, ()):
        spelled = spelled.replace(theirs, ours)
    return spelled[:-1]


def tied_head(family: str, config: Any, *, foreign: bool) -> str | None:
    """The copy of the embedding that files may carry besides, as Hugging Face or PaddleNLP names it; None if untied."""
    if not is_tied(family, config):
        return None
    return FOREIGN_TIED_HEAD if foreign else _TIED_HEADS.get(family)


def native_spellings(family: str, name: str) -> tuple[str, ...]:
    """The canonical name, and the same as PaddleNLP's bare network or pipeline spells it."""
    prefix = BASE_PREFIXES[family]
    return (name, name[len(prefix) :]) if name.startswith(prefix) else (name,)


def compositions(family: str, name: str, config: Any) -> list[Piece]:
    """How the columns of a weight are found in matrices of the other fusion; [] where there is none.

    LLaMA only: q_proj, k_proj, v_proj <-> qkv_proj (per key-value head: its queries, its key, its value) and
    gate_proj, up_proj <-> gate_up_fused_proj (side by side).
    """
    if family != "llama" or "_proj.weight" not in name:
        return []
    base, _, kind = name.removesuffix("_proj.weight").rpartition(".")

    def spell(part: str) -> str:
        return f"{base}.{part}_proj.weight"

    width = config.intermediate_size
    if kind == "gate_up_fused":
        return [Piece(0, width, spell("gate"), 0), Piece(width, 2 * width, spell("up"), 0)]
    if kind in ("gate", "up"):
        return [Piece(0, width, spell("gate_up_fused"), 0 if kind == "gate" else width)]
    head = config.hidden_size // config.num_attention_heads
    queries = config.num_attention_heads // config.num_key_value_heads * head
    group = queries + 2 * head
    # (offset inside a group of the fused matrix, width) of each part
    parts = {"q": (0, queries), "k": (queries, head), "v": (queries + head, head)}
    pieces = []
    for index in range(config.num_key_value_heads):
        if kind == "qkv":
            for part, (offset, size) in parts.items():
                at = index * group + offset
                pieces.append(Piece(at, at + size, spell(part), index * size))
        elif kind in parts:
            offset, size = parts[kind]
            pieces.append(Piece(index * size, (index + 1) * size, spell("qkv"), index * group + offset))
    return pieces
