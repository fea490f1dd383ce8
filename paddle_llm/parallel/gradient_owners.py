"""Which rank of a sharding group owns which parameter, where fleet's own choice does not do.

Fleet (paddle 3.3.1, DygraphShardingOptimizer) gives each parameter, the largest first, to the rank that has least. It
counts frozen parameters, which have no gradient and no optimizer state: where most are frozen, one rank may get all
that is trained. And it knows nothing of weights tied between pipeline stages, whose owners must be the same rank of
their groups to add up the two gradients between them. Without either, the choice here is fleet's.
"""

from __future__ import annotations

from typing import Any

TIED_OWNER = 0


def is_tied(parameter: Any) -> bool:
    """Whether another pipeline stage has this weight, too (marked by fleet, or by `count_shared_weights_once`)."""
    return hasattr(parameter, "is_firstly_shared")


def balance_owners(sharding: Any) -> None:
    """Choose the owners anew in a DygraphShardingOptimizer that has made no step yet."""
    everything = list(sharding._parameter_list)
    tied = [p for p in everything if p.trainable and is_tied(p)]
    trained = [p for p in everything if p.trainable and not is_tied(p)]
    frozen = [p for p in everything if not p.trainable]
    degree = sharding._sharding_world_size
    mapping: dict[int, list] = {rank: [] for rank in range(degree)}
    mapping[TIED_OWNER] += tied
    _largest_first(trained, mapping)
    frozen_mapping: dict[int, list] = {rank: [] for rank in range(degree)}
    _largest_first(frozen, frozen_mapping)
    for rank in range(degree):
        mapping[rank] += frozen_mapping[rank]
    sharding._rank2params = mapping
    sharding._param2rank = sharding._map_param_to_rank()
    mine = mapping[sharding._sharding_rank]
    sharding._set_inner_opt_attr("_parameter_list", mine)
    sharding._set_inner_opt_attr("_param_groups", mine)


def _largest_first(parameters: list, mapping: dict[int, list]) -> None:
    """Each to the rank that has least so far (Graham 1969: at most 4/3 of the best possible)."""
    loads = {rank: sum(p.size for p in owned) for rank, owned in mapping.items()}
    for parameter in sorted(parameters, key=lambda p: p.size, reverse=True):
        rank = min(loads, key=lambda r: loads[r])
        mapping[rank].append(parameter)
        loads[rank] += parameter.size
