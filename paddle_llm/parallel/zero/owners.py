"""Choose the rank of a sharding group that owns each parameter.

Fleet (paddle 3.3.1, DygraphShardingOptimizer) assigns each parameter, the largest first, to the rank with the fewest
elements. It counts frozen parameters, which have no gradient and no optimizer state: if most are frozen, one rank may
own all trained parameters. It also ignores weights that are tied between pipeline stages, whose owners must have the
same rank in their groups to add the two gradients. Without frozen and tied weights, the choice made here is fleet's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from paddle_llm.planner.shapes.owners import largest_first

if TYPE_CHECKING:
    from paddle import Tensor
    from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer import DygraphShardingOptimizer
    from paddle.optimizer import Optimizer

TIED_OWNER = 0


def is_tied(parameter: Tensor) -> bool:
    """Return whether another pipeline stage has this weight, too (marked by fleet or `count_shared_weights_once`)."""
    return hasattr(parameter, "is_firstly_shared")


def choose_owners(parameters: Iterable[Tensor], degree: int) -> list[list[Tensor]]:
    """Return the parameters of each rank, balanced by elements; trained and frozen parameters are balanced separately.

    Args:
        parameters: Parameters to assign.
        degree: Number of ranks.
    """
    everything = list(parameters)
    trained: list[list[Tensor]] = [[] for _ in range(degree)]
    trained[TIED_OWNER] += [p for p in everything if p.trainable and is_tied(p)]
    _largest_first([p for p in everything if p.trainable and not is_tied(p)], trained)
    frozen: list[list[Tensor]] = [[] for _ in range(degree)]
    _largest_first([p for p in everything if not p.trainable], frozen)
    return [first + second for first, second in zip(trained, frozen, strict=True)]


def _largest_first(parameters: list[Tensor], owned: list[list[Tensor]]) -> None:
    """Assign each parameter to the rank with the fewest elements."""
    ordered = sorted(parameters, key=lambda p: p.size, reverse=True)
    loads = [sum(p.size for p in mine) for mine in owned]
    for parameter, rank in zip(ordered, largest_first([p.size for p in ordered], len(owned), loads), strict=True):
        owned[rank].append(parameter)


def rebalance(sharding: DygraphShardingOptimizer) -> None:
    """Choose the owners again in a DygraphShardingOptimizer that has made no step yet."""
    owned = choose_owners(sharding._parameter_list, sharding._sharding_world_size)
    sharding._rank2params = dict(enumerate(owned))
    sharding._param2rank = sharding._map_param_to_rank()
    mine = owned[sharding._sharding_rank]
    sharding._set_inner_opt_attr("_parameter_list", mine)
    sharding._set_inner_opt_attr("_param_groups", mine)


def owns(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Return whether this rank has the reduced gradient and the optimizer state of a parameter.

    Args:
        optimizer: Optimizer of the training loop, fleet's wrapper or one without sharding.
        parameter: Parameter of the network.
    """
    sharding: Any = getattr(optimizer, "_inner_opt", None)
    if not hasattr(sharding, "_param2rank"):
        return True
    return bool(sharding._param2rank.get(parameter.name) == sharding._sharding_rank)
