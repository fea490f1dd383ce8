"""Which rank of a sharding group owns which parameter, where fleet's own choice does not do.

Fleet (paddle 3.3.1, DygraphShardingOptimizer) gives each parameter, the largest first, to the rank that has least. It
counts frozen parameters, which have no gradient and no optimizer state: where most are frozen, one rank may get all
that is trained. And it knows nothing of weights tied between pipeline stages, whose owners must be the same rank of
their groups to add up the two gradients between them. Without either, the choice here is fleet's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

TIED_OWNER = 0


def is_tied(parameter: Any) -> bool:
    """Whether another pipeline stage has this weight, too (marked by fleet, or by `count_shared_weights_once`)."""
    return hasattr(parameter, "is_firstly_shared")


def choose_owners(parameters: Iterable[Any], degree: int) -> list[list[Any]]:
    """The parameters of each of `degree` ranks.

    What is trained is balanced by elements, whole parameters at a time, and so is apart from it what is frozen.
    """
    everything = list(parameters)
    trained: list[list[Any]] = [[] for _ in range(degree)]
    trained[TIED_OWNER] += [p for p in everything if p.trainable and is_tied(p)]
    _largest_first([p for p in everything if p.trainable and not is_tied(p)], trained)
    frozen: list[list[Any]] = [[] for _ in range(degree)]
    _largest_first([p for p in everything if not p.trainable], frozen)
    return [ours + theirs for ours, theirs in zip(trained, frozen, strict=True)]


def _largest_first(parameters: list[Any], owned: list[list[Any]]) -> None:
    """Each to the rank that has least so far (Graham 1969: at most 4/3 of the best possible)."""
    loads = [sum(p.size for p in mine) for mine in owned]
    for parameter in sorted(parameters, key=lambda p: p.size, reverse=True):
        rank = loads.index(min(loads))
        owned[rank].append(parameter)
        loads[rank] += parameter.size


def rebalance(sharding: Any) -> None:
    """Choose the owners anew in a DygraphShardingOptimizer that has made no step yet."""
    owned = choose_owners(sharding._parameter_list, sharding._sharding_world_size)
    sharding._rank2params = dict(enumerate(owned))
    sharding._param2rank = sharding._map_param_to_rank()
    mine = owned[sharding._sharding_rank]
    sharding._set_inner_opt_attr("_parameter_list", mine)
    sharding._set_inner_opt_attr("_param_groups", mine)


def owns(optimizer: Any, parameter: Any) -> bool:
    """Whether this rank has the reduced gradient and the state of a parameter, whatever fleet has made of an optimizer."""
    sharding = getattr(optimizer, "_inner_opt", None)
    if not hasattr(sharding, "_param2rank"):
        return True
    return sharding._param2rank.get(parameter.name) == sharding._sharding_rank
