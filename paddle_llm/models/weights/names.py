"""Map names and layouts of weights between PaddleNLP in one process, its pipelines, Hugging Face and fused matrices.

The canonical name of a weight is the one of PaddleNLP's network in one process
(`llama.layers.0.self_attn.q_proj.weight`). Hugging Face stores a matrix as [out, in], PaddleNLP as [in, out];
embeddings are equal. ChatGLM and BLOOM store query_key_value fused, in the same order of heads in both libraries, so
that only the transpose differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paddle_llm.families import FAMILIES

if TYPE_CHECKING:
    import paddle
    from paddlenlp.transformers import PretrainedConfig

    from paddle_llm.models.protocols import LanguageModel


@dataclass(frozen=True)
class HuggingFaceTensor:
    """A weight in a folder of Hugging Face.

    Attributes:
        name: Name of the tensor.
        transpose: Whether it is the transpose of PaddleNLP's.
    """

    name: str
    transpose: bool


@dataclass(frozen=True)
class Piece:
    """Columns [start, stop) of a matrix, which are columns [source_start, source_start + stop - start) of another one.

    Attributes:
        start: First column.
        stop: Column after the last one.
        source: Canonical name of the other matrix.
        source_start: First column in the other matrix.
    """

    start: int
    stop: int
    source: str
    source_start: int


_TABLES = ("embeddings.weight", "embed_tokens.weight")  # suffixes of embeddings, which both libraries store alike
EMBEDDINGS = {name: family.weights.embedding for name, family in FAMILIES.items()}
HEADS = {name: family.weights.head for name, family in FAMILIES.items() if family.weights.head}
HUGGING_FACE_TIED_HEAD = "lm_head.weight"
# Attribute of the parameters that fine-tuning adds to the network (peft).
ADDED = "is_added"
# Buffers in some checkpoints that are not needed.
IGNORED_ENDS = ("inv_freq", "scale_mask_softmax.causal_mask", "attn.masked_bias")


def canonical_name(family: str, name: str, *, tied: bool) -> str:
    """Return the canonical name of an entry of `state_dict()`: its name, or for a tied head that of the embedding."""
    return EMBEDDINGS[family] if tied and name == FAMILIES[family].weights.tied_head else name


def canonical_parameters(model: LanguageModel, family: str) -> Iterator[tuple[str, paddle.Tensor]]:
    """Yield the canonical name of each parameter of this rank, and the parameter.

    The tied head of the last pipeline stage has the name of the embedding.

    Parameters that fine-tuning added are omitted; `peft.trainable_tensors` lists them. Under sharding stage 3 a
    parameter has values only inside `gathered_weight` (parallel/zero/stage3.py).

    Args:
        model: A PretrainedModel or PipelineLayer of PaddleNLP.
        family: Name of its family.
    """
    tied = is_tied(family, model.config)
    seen: set[int] = set()
    # Without hooks: the hook of sharding stage 3 refuses to return weights that are not gathered.
    for name, parameter in model.state_dict(use_hook=False).items():
        if id(parameter) in seen or name.endswith(IGNORED_ENDS) or getattr(parameter, ADDED, False):
            continue
        seen.add(id(parameter))
        yield canonical_name(family, name, tied=tied), parameter


def is_tied(family: str, config: PretrainedConfig) -> bool:
    """Return whether the head is the embedding under PaddleNLP's configuration `config`."""
    return FAMILIES[family].is_tied(config)


def hugging_face(family: str, name: str, ndim: int) -> HuggingFaceTensor:
    """Return Hugging Face's name of a canonical name, and whether it stores the transpose."""
    weights = FAMILIES[family].weights
    for prefix, theirs in weights.prefixes:
        if name.startswith(prefix):
            renamed = theirs + name[len(prefix) :]
            for ours, other in weights.infixes:
                renamed = renamed.replace(ours, other)
            return HuggingFaceTensor(renamed, ndim == 2 and not name.endswith(_TABLES))
    raise KeyError(f"{name} is not a weight of {family}")


def hugging_face_candidates(family: str, name: str) -> tuple[str, ...]:
    """Return Hugging Face's name of a weight, and its name in a checkpoint of the network without its head."""
    prefix = FAMILIES[family].weights.hugging_face_base_prefix
    return (name, name[len(prefix) :]) if prefix and name.startswith(prefix) else (name,)


def paddlenlp_infixes(name: str) -> str:
    """Return a name of Hugging Face with PaddleNLP's words in its middle; its prefix does not change."""
    changed = f"{name}."
    for family in FAMILIES.values():
        if family.weights.infix_prefix and name.startswith(family.weights.infix_prefix):
            for ours, theirs in family.weights.infixes:
                changed = changed.replace(theirs, ours)
    return changed[:-1]


def tied_head(family: str, config: PretrainedConfig, *, is_hugging_face: bool) -> str | None:
    """Return the name of the copy of the embedding that files may hold as the head; None if the head is not tied.

    Args:
        family: Name of the family.
        config: PaddleNLP's configuration.
        is_hugging_face: Whether the files have Hugging Face's names.
    """
    if not is_tied(family, config):
        return None
    return HUGGING_FACE_TIED_HEAD if is_hugging_face else FAMILIES[family].weights.tied_head


def paddlenlp_candidates(family: str, name: str) -> tuple[str, ...]:
    """Return the canonical name of a weight, and its name in PaddleNLP's network without a head or in its pipeline."""
    prefix = FAMILIES[family].base_prefix
    return (name, name[len(prefix) :]) if name.startswith(prefix) else (name,)


def fused_pieces(family: str, name: str, config: PretrainedConfig) -> list[Piece]:
    """Return the pieces of fused or separate matrices that form a weight; [] if the family has no fused matrices.

    For families with fused matrices: q_proj, k_proj, v_proj <-> qkv_proj (per key-value head: its queries, its key, its
    value) and gate_proj, up_proj <-> gate_up_fused_proj (side by side).
    """
    if not FAMILIES[family].capabilities.fused_matrices or "_proj.weight" not in name:
        return []
    base, _, kind = name.removesuffix("_proj.weight").rpartition(".")

    def name_of(part: str) -> str:
        return f"{base}.{part}_proj.weight"

    width = config.intermediate_size
    if kind == "gate_up_fused":
        return [Piece(0, width, name_of("gate"), 0), Piece(width, 2 * width, name_of("up"), 0)]
    if kind in ("gate", "up"):
        return [Piece(0, width, name_of("gate_up_fused"), 0 if kind == "gate" else width)]
    head = config.hidden_size // config.num_attention_heads
    queries = config.num_attention_heads // config.num_key_value_heads * head
    group = queries + 2 * head
    # (offset inside a group of the fused matrix, width) of each part
    parts = {"q": (0, queries), "k": (queries, head), "v": (queries + head, head)}
    pieces = []
    for index in range(config.num_key_value_heads):
        if kind == "qkv":
            for part, (offset, size) in parts.items():
                begin = index * group + offset
                pieces.append(Piece(begin, begin + size, name_of(part), index * size))
        elif kind in parts:
            offset, size = parts[kind]
            pieces.append(Piece(index * size, (index + 1) * size, name_of("qkv"), index * group + offset))
    return pieces
