"""The weights of a model: names, shapes, and their number by kind.

`planner/` computes FLOPs and memory from them.

Shapes: h hidden size, f feed-forward width, N query heads, G key-value heads, D head width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paddle_llm.families.facts import ModelFacts

if TYPE_CHECKING:
    from paddle_llm.families.spec import Family


@dataclass(frozen=True)
class WeightShape:
    """One weight.

    Attributes:
        name: Canonical name; {} is the number of the layer.
        shape: Shape in one process, without padding of the vocabulary; [in, out] for a matrix.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelShapes:
    """All weights of a model, by the items of a pipeline.

    Attributes:
        embedding: Weights before the layers; the first one is the token embedding.
        layer: Weights of one layer.
        norm: Weights between the layers and the head.
        head: Matrix that computes logits; None if it is the token embedding.
        tables: Names of the weights that are only indexed if the head is another matrix.
    """

    embedding: tuple[WeightShape, ...]
    layer: tuple[WeightShape, ...]
    norm: tuple[WeightShape, ...]
    head: WeightShape | None
    tables: frozenset[str]


@dataclass(frozen=True)
class Parameters:
    """Number of parameters of a model, by kind.

    Attributes:
        lookups: Tables that are only indexed (an untied token embedding, learned positions): no product, no FLOPs.
        layers: All transformer layers together.
        head: The matrix that computes logits. If it is tied to the token embedding, it is counted here only.
        rest: Norms outside the layers, and projections between embedding and layers.
    """

    lookups: int
    layers: int
    head: int
    rest: int

    @property
    def total(self) -> int:
        """Number of all parameters."""
        return self.lookups + self.layers + self.head + self.rest


def count(shapes: ModelShapes, layers: int) -> Parameters:
    """Return the number of parameters by kind.

    Args:
        shapes: Weights of the model.
        layers: Number of layers.
    """
    outside = (*shapes.embedding, *shapes.norm)
    table = shapes.embedding[0]
    head = shapes.head or table
    lookups = sum(weight.size for weight in outside if weight.name in shapes.tables and weight != head)
    rest = sum(weight.size for weight in outside if weight.name not in shapes.tables)
    return Parameters(lookups, layers * sum(weight.size for weight in shapes.layer), head.size, rest)


def decoder_shapes(
    family: Family,
    facts: ModelFacts,
    *,
    biases: frozenset[str] = frozenset(),
    position_rows: int = 0,
    embedding_width: int | None = None,
    final_norm: bool = True,
) -> ModelShapes:
    """Return the weights of a decoder of attention, an MLP and two norms per layer.

    Args:
        family: Family, whose `static_program` names the layers.
        facts: Shape of the model.
        biases: Parts with biases, of "qkv", "out" and "mlp".
        position_rows: Rows of each table of learned positions.
        embedding_width: Width of the token embedding if it is not the hidden size.
        final_norm: Whether a norm follows the layers.
    """
    program, h = family.static_program, facts.hidden_size
    width = embedding_width or h
    embedding = [WeightShape(family.weights.embedding, (facts.vocab_size, width))]
    if program.project_in is not None and width != h:
        embedding.append(WeightShape(program.project_in, (width, h)))
    tables = [WeightShape(name, (position_rows, h)) for name in program.position_tables if position_rows]
    embedding += tables
    if program.first_norm is not None:
        embedding += _norm(program.first_norm, h, program.rms_norm)
    norm = _norm(program.last_norm, h, program.rms_norm) if final_norm else []
    if program.project_out is not None and width != h:
        norm.append(WeightShape(program.project_out, (h, width)))
    has_head = not facts.tie_word_embeddings and family.weights.head is not None
    return ModelShapes(
        embedding=tuple(embedding),
        layer=tuple(_layer(family, facts, biases)),
        norm=tuple(norm),
        head=WeightShape(str(family.weights.head), (width, facts.vocab_size)) if has_head else None,
        tables=frozenset((family.weights.embedding, *(table.name for table in tables))),
    )


def _layer(family: Family, facts: ModelFacts, biases: frozenset[str]) -> Iterator[WeightShape]:
    program, h, f = family.static_program, facts.hidden_size, facts.intermediate_size
    query, key_value = facts.num_attention_heads * facts.head_dim, facts.num_key_value_heads * facts.head_dim
    widths = [query, key_value, key_value] if len(program.qkv) == 3 else [query + 2 * key_value]
    up = f if len(program.up) == 2 or program.activation != "swiglu" else 2 * f
    first_norm, second_norm = (program.layer + name for name in program.norms)
    yield from _norm(first_norm, h, program.rms_norm)
    for name, columns in zip(program.qkv, widths, strict=True):
        yield from _linear(program.layer + name, h, columns, "qkv" in biases)
    yield from _linear(program.layer + program.out, query, h, "out" in biases)
    yield from _norm(second_norm, h, program.rms_norm)
    for name in program.up:
        yield from _linear(program.layer + name, h, up, "mlp" in biases)
    yield from _linear(program.layer + program.down, f, h, "mlp" in biases)


def _linear(name: str, rows: int, columns: int, bias: bool) -> list[WeightShape]:
    weight = WeightShape(f"{name}.weight", (rows, columns))
    return [weight, WeightShape(f"{name}.bias", (columns,))] if bias else [weight]


def _norm(name: str, width: int, rms: bool) -> list[WeightShape]:
    weight = WeightShape(f"{name}.weight", (width,))
    return [weight] if rms else [weight, WeightShape(f"{name}.bias", (width,))]


ALL_BIASES = frozenset(("qkv", "out", "mlp"))


def with_all_biases(family: Family, facts: ModelFacts) -> ModelShapes:
    """Return the weights of a decoder in which every matrix of a layer has a bias."""
    return decoder_shapes(family, facts, biases=ALL_BIASES)
