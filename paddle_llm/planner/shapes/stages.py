"""The layers of each pipeline stage, as PaddleNLP's pipelines assign them.

A pipeline is a list of items: the embedding, the layers, the norm, the head. If the stages divide the number of layers, each
stage (virtual stage) has the same number of layers, the first one also the embedding, the last one norm and head. Otherwise
items are counted, and the last stages have one more (paddle 3.3.1, SegmentLayers.uniform).
"""

from __future__ import annotations

from dataclasses import dataclass

from paddle_llm.config.layout import Layout


@dataclass(frozen=True)
class Chunk:
    """Consecutive items of a pipeline on one rank.

    Attributes:
        layers: Numbers of the layers.
        has_embedding: Whether the chunk begins with the embedding.
        has_norm: Whether it contains the norm after the layers.
        has_head: Whether it ends with the head and the loss.
    """

    layers: range
    has_embedding: bool
    has_norm: bool
    has_head: bool


def chunks_of(layers: int, layout: Layout) -> tuple[tuple[Chunk, ...], ...]:
    """Return the chunks of each stage; one chunk without virtual stages.

    Args:
        layers: Number of layers of the model.
        layout: Layout of the job.
    """
    stages = layout.pipeline
    if stages == 1:
        return ((_chunk(0, layers + 3, layers),),)
    parts = stages * layout.virtual_stages
    bounds = _even_bounds(layers, parts) if layers % stages == 0 else _uniform_bounds(layers + 3, parts)
    chunks = [_chunk(start, stop, layers) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
    return tuple(tuple(chunks[stage::stages]) for stage in range(stages))


def _chunk(start: int, stop: int, layers: int) -> Chunk:
    """Return the items [start, stop): 0 is the embedding, layer i is item i + 1, then norm and head."""
    first, last = max(start - 1, 0), min(stop - 1, layers)
    return Chunk(
        layers=range(first, max(last, first)),
        has_embedding=start == 0,
        has_norm=start <= layers + 1 < stop,
        has_head=stop == layers + 3,
    )


def _even_bounds(layers: int, parts: int) -> list[int]:
    size = layers // parts
    return [0, *(1 + size * part for part in range(1, parts)), layers + 3]


def _uniform_bounds(items: int, parts: int) -> list[int]:
    size, extra = divmod(items, parts)
    bounds = [0]
    for part in range(1, parts):
        bounds.append(bounds[-1] + size + (part > parts - extra))
    return [*bounds, items]
