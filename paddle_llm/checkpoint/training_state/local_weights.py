"""The tensors of the training state that this rank holds: canonical names, parts of the full tensors, owners.

A weight, its master weight and its optimizer states have the same canonical name, that of PaddleNLP's network in one
process, and differ by kind. So a checkpoint does not depend on the layout that wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.full_weights import family_name
from paddle_llm.models.weights.names import canonical_parameters
from paddle_llm.models.weights.shards import Shard, shard_of
from paddle_llm.models.weights.vocabulary import real_vocab_size, vocabulary_axis
from paddle_llm.parallel.mesh import Axis, current_mesh
from paddle_llm.peft.attachment import active_attachment

if TYPE_CHECKING:
    import paddle

    from paddle_llm.models.protocols import LanguageModel

WEIGHTS, MASTER_WEIGHTS, STATE = "weights", "master_weights", "state"  # kinds of tensors beside the optimizer's


@dataclass(frozen=True)
class LocalWeight:
    """A weight of this rank, or its part of one.

    Attributes:
        name: Canonical name.
        parameter: The parameter.
        shard: Part of the full tensor, which includes the rows of vocabulary padding.
        unpadded: Rows (columns of a head) without vocabulary padding, along `shard.axis`; None without padding.
        is_copy: Whether an earlier pipeline stage has the same weight (tied embeddings).
    """

    name: str
    parameter: paddle.Tensor
    shard: Shard
    unpadded: int | None = None
    is_copy: bool = False

    @property
    def is_trained(self) -> bool:
        """Whether the training changes the weight."""
        return not self.parameter.stop_gradient


def local_weights(model: LanguageModel, layout: Layout) -> list[LocalWeight]:
    """Return the weights of this rank, including those that fine-tuning added, in the order of the network.

    Args:
        model: Network without fleet's wrapper.
        layout: Layout of the job.

    Raises:
        UserError: If the network belongs to no supported family and is split over tensor-parallel ranks.
    """
    axis = current_mesh(layout).tensor
    try:
        family = family_name(model)
    except KeyError:
        return list(_tensors_of_unknown_family(model, axis))
    found = []
    for name, parameter in canonical_parameters(model, family):
        split = axis.size > 1 and bool(getattr(parameter, "is_distributed", False))
        shard = shard_of(family, name, parameter.shape, split, model.config, axis.size, axis.rank)
        unpadded = None
        if vocabulary_axis(family, name) == shard.axis and shard.shape[shard.axis] != real_vocab_size(model.config):
            unpadded = real_vocab_size(model.config)
        found.append(LocalWeight(name, parameter, shard, unpadded, _is_copy(parameter)))
    attachment = active_attachment(model)
    added = attachment.added if attachment is not None else ()
    return found + [LocalWeight(tensor.name, tensor.parameter, tensor.shard) for tensor in added]


def _tensors_of_unknown_family(model: LanguageModel, axis: Axis) -> Iterator[LocalWeight]:
    seen: set[int] = set()
    for name, parameter in model.state_dict(use_hook=False).items():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        if axis.size > 1 and getattr(parameter, "is_distributed", False):
            raise UserError(
                f"{type(model).__name__} does not belong to a supported family, so the parts of {name} on its tensor-parallel "
                "ranks cannot be saved. Use tensor_parallel_degree 1."
            )
        shape = tuple(parameter.shape) or (1,)
        yield LocalWeight(name, parameter, Shard(shape, 0, ((0, shape[0]),)), is_copy=_is_copy(parameter))


def _is_copy(parameter: paddle.Tensor) -> bool:
    """Return whether a tied weight is that of a later pipeline stage (marked by fleet or `count_shared_weights_once`)."""
    return not getattr(parameter, "is_firstly_shared", True)
