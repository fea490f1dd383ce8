"""The weights of one rank: its pipeline stage, its part of each matrix, and what a method of fine-tuning adds.

Shapes: h hidden size, r rank of LoRA, P prefix tokens, G key-value heads, D head width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from paddle_llm.config.methods import any_pattern_matches, pattern_matches
from paddle_llm.families import FAMILIES, Family
from paddle_llm.families.parameters import WeightShape
from paddle_llm.families.spec import COLUMN, ROW
from paddle_llm.planner.job import Job
from paddle_llm.planner.shapes.stages import Chunk, chunks_of

_ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class RankWeight:
    """A weight of one rank.

    Attributes:
        name: Canonical name.
        shape: Shape of this rank's part.
        full_size: Number of elements of the whole weight without padding of the vocabulary.
        trained: Whether it is trained.
        split: Axis along which tensor-parallel ranks split it; None if each has all of it.
        added: Whether a method of fine-tuning adds it.
        tied: Whether another pipeline stage holds it, too.
    """

    name: str
    shape: tuple[int, ...]
    full_size: int
    trained: bool
    split: int | None
    added: bool = False
    tied: bool = False

    @property
    def size(self) -> int:
        """Number of elements on this rank."""
        return math.prod(self.shape)


def weights_of_stage(job: Job, stage: int) -> list[RankWeight]:
    """Return all weights of a rank in a pipeline stage, in the order of its layers."""
    return [
        weight
        for chunk in chunks_of(job.model.num_hidden_layers, job.layout)[stage]
        for weight in _of_chunk(job, chunk)
    ]


def all_weights(job: Job) -> Iterator[RankWeight]:
    """Yield every weight of the model once, as a tensor-parallel rank holds it."""
    for stage in range(job.layout.pipeline):
        for weight in weights_of_stage(job, stage):
            if not (weight.tied and stage > 0):
                yield weight


def layer_weights(job: Job, number: int) -> tuple[RankWeight, ...]:
    """Return the weights of one layer."""
    unlike = job.method.last_layers is not None or job.method.trainable_modules or job.method.modules_to_save
    if unlike or job.method.targets != (_ALL_LINEAR,):
        return _layer(_only_shapes(job), number)
    # All layers are alike: compute one of them.
    prefix = _family(job).static_program.layer
    return tuple(
        replace(weight, name=weight.name.replace(prefix.format(0), prefix.format(number)))
        for weight in _layer(_only_shapes(job), 0)
    )


def embedding_weights(job: Job) -> tuple[RankWeight, ...]:
    """Return the weights before the layers."""
    return _embedding(_only_shapes(job))


def norm_weights(job: Job) -> tuple[RankWeight, ...]:
    """Return the weights between the layers and the head."""
    return tuple(_base(job, _family(job).weight_shapes(job.model).norm))


def head_weights(job: Job) -> tuple[RankWeight, ...]:
    """Return the head's matrix; in a pipeline that of a tied head is a copy of the embedding."""
    shapes = _family(job).weight_shapes(job.model)
    if shapes.head is not None:
        return tuple(_base(job, [shapes.head]))
    if job.layout.pipeline == 1:
        return ()
    return (replace(next(iter(_base(job, shapes.embedding[:1]))), tied=True),)


def _only_shapes(job: Job) -> Job:
    """Return the job without what does not change weights, so that results can be cached."""
    return Job(model=job.model, layout=job.layout, seq_length=1, method=job.method, kernels=job.kernels)


def _of_chunk(job: Job, chunk: Chunk) -> Iterator[RankWeight]:
    if chunk.has_embedding:
        yield from embedding_weights(job)
    for number in chunk.layers:
        yield from layer_weights(job, number)
    if chunk.has_norm:
        yield from norm_weights(job)
    if chunk.has_head:
        yield from head_weights(job)


def _family(job: Job) -> Family:
    return FAMILIES[job.model.model_type]


@lru_cache(maxsize=1024)
def _embedding(job: Job) -> tuple[RankWeight, ...]:
    shapes, method = _family(job).weight_shapes(job.model), job.method
    found = list(_base(job, shapes.embedding))
    if job.layout.pipeline > 1 and shapes.head is None:
        found[0] = replace(found[0], tied=True)
    width = shapes.embedding[0].shape[1]
    if method.name == "prompt":
        found.append(_whole(f"{shapes.embedding[0].name.removesuffix('.weight')}.prompt", (method.tokens, width)))
    if method.name == "prefix" and method.prefix_projection:
        h = job.model.hidden_size
        found += [
            _whole("prefix_embedding", (method.tokens, h)),
            _whole("prefix_weight", (h, h)),
            _whole("prefix_bias", (h,)),
        ]
    return tuple(found)


@lru_cache(maxsize=4096)
def _layer(job: Job, number: int) -> tuple[RankWeight, ...]:
    shapes = _with_fused_matrices(job, _family(job).weight_shapes(job.model).layer)
    base = list(_base(job, [replace(weight, name=weight.name.format(number)) for weight in shapes]))
    added = {"lora": _lora, "adalora": _lora, "adapter": _bottleneck, "prefix": _prefix}.get(job.method.name)
    return tuple(base if added is None else [*base, *added(job, base, number)])


def _with_fused_matrices(job: Job, layer: tuple[WeightShape, ...]) -> list[WeightShape]:
    """Return the weights of a layer with the matrices side by side that are one matrix."""
    program, found = _family(job).static_program, list(layer)
    fused = [(program.qkv, "qkv_proj")] if job.kernels.fused_qkv else []
    fused += [(program.up, "gate_up_fused_proj")] if job.kernels.fused_gate_up else []
    for parts, name in fused:
        names = [f"{program.layer}{part}.weight" for part in parts]
        matrices = [weight for weight in found if weight.name in names]
        rows, columns = matrices[0].shape[0], sum(weight.shape[1] for weight in matrices)
        at = found.index(matrices[0])
        found = [weight for weight in found if weight not in matrices]
        found.insert(at, WeightShape(f"{program.layer}{parts[0].rpartition('.')[0]}.{name}.weight", (rows, columns)))
    return found


def _base(job: Job, shapes: Iterable[WeightShape]) -> Iterator[RankWeight]:
    """Yield this rank's part of weights of the model."""
    weights, tensor = _family(job).weights, job.layout.tensor
    for weight in shapes:
        axis = weights.split_axis(weight.name, len(weight.shape)) if tensor > 1 else None
        if axis is not None and _is_replicated(job, weight.name):
            axis = None
        shape = list(weight.shape)
        if axis is not None:
            shape[axis] = -(-shape[axis] // tensor)  # a vocabulary is padded
        yield RankWeight(weight.name, tuple(shape), weight.size, _is_trained(job, weight.name), axis)


def _is_replicated(job: Job, name: str) -> bool:
    """Return whether every tensor-parallel rank holds a key-value projection whole, as its heads cannot be divided."""
    qkv = _family(job).static_program.qkv
    is_key_value = len(qkv) == 3 and any(f".{part}." in name for part in qkv[1:])
    return is_key_value and job.model.num_key_value_heads % job.layout.tensor != 0


def _is_trained(job: Job, name: str) -> bool:
    method = job.method
    if method.name == "full":
        return True
    patterns = method.trainable_modules if method.name == "freeze" else method.modules_to_save
    parts = name.split(".")
    if any(any_pattern_matches(patterns, ".".join(parts[:end])) for end in range(1, len(parts) + 1)):
        return True
    number = re.search(r"\.(\d+)\.", name)
    if method.name == "freeze" and method.last_layers and number:
        return int(number[1]) >= job.model.num_hidden_layers - method.last_layers
    return False


def _whole(name: str, shape: tuple[int, ...]) -> RankWeight:
    return RankWeight(name, shape, math.prod(shape), True, None, added=True)


def _part(name: str, full: tuple[int, ...], axis: int | None, degree: int) -> RankWeight:
    if axis is None:
        return _whole(name, full)
    shape = tuple(size // degree if index == axis else size for index, size in enumerate(full))
    return RankWeight(name, shape, math.prod(full), True, axis, added=True)


def _matrices(base: Iterable[RankWeight]) -> Iterator[RankWeight]:
    return (weight for weight in base if len(weight.shape) == 2)


def _lora(job: Job, base: list[RankWeight], number: int) -> Iterator[RankWeight]:
    method, tensor = job.method, job.layout.tensor
    for weight in _matrices(base):
        path = weight.name.removesuffix(".weight")
        if method.targets not in ((), (_ALL_LINEAR,)) and not any(pattern_matches(one, path) for one in method.targets):
            continue
        rows, columns = (size * (tensor if weight.split == axis else 1) for axis, size in enumerate(weight.shape))
        yield _part(f"{path}.lora_A", (rows, method.rank), 0 if weight.split == ROW else None, tensor)
        if method.name == "adalora":
            yield _whole(f"{path}.lora_E", (method.rank,))
        column_split = 1 if weight.split == COLUMN % 2 else None
        yield _part(f"{path}.lora_B", (method.rank, columns), column_split, tensor)
        if method.dora:
            yield _part(f"{path}.lora_magnitude", (columns,), 0 if column_split else None, tensor)


def _bottleneck(job: Job, base: list[RankWeight], number: int) -> Iterator[RankWeight]:
    program, size = _family(job).static_program, job.method.adapter_size
    for weight in _matrices(base):
        path = weight.name.removesuffix(".weight")
        if path.endswith((program.out, program.down)):
            width = weight.shape[1]
            yield _whole(f"{path}.adapter_down", (width, size))
            yield _whole(f"{path}.adapter_down_bias", (size,))
            yield _whole(f"{path}.adapter_up", (size, width))
            yield _whole(f"{path}.adapter_up_bias", (width,))


def _prefix(job: Job, base: list[RankWeight], number: int) -> Iterator[RankWeight]:
    facts, method, tensor = job.model, job.method, job.layout.tensor
    spec = _family(job).network.prefix
    path = _family(job).static_program.layer.format(number).rstrip(".") + spec.layer
    if spec.kind == "hidden states":
        yield _whole(f"{path}.prefix_hidden", (method.tokens, facts.hidden_size))
        return
    groups, width = facts.num_key_value_heads, facts.head_dim
    axis = 1 if tensor > 1 and groups % tensor == 0 else None
    rows, end = (facts.hidden_size, "_weight") if method.prefix_projection else (method.tokens, "")
    for part in ("key", "value"):
        yield _part(f"{path}.prefix_{part}{end}", (rows, groups, width), axis, tensor)
