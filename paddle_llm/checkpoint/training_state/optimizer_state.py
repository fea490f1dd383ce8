"""The states of an optimizer by parameter: who owns them, their tensors by kind, and creating them before the first step.

Paddle's optimizers (3.3.1) create master weights and accumulators at the first update, under generated names, and a
loaded state waits under these names until then. Here they are created at once and filled under their parameter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import paddle

from paddle_llm.checkpoint.training_state.local_weights import MASTER_WEIGHTS
from paddle_llm.core.errors import UserError


class OptimizerState:
    """The states of the optimizer of a training loop.

    Args:
        optimizer: Paddle's optimizer, or fleet's wrapper around it.

    Raises:
        UserError: If fleet fuses parameters or cuts them into slices, so that a state does not belong to one weight.
    """

    def __init__(self, optimizer: paddle.optimizer.Optimizer) -> None:
        self._optimizer = optimizer
        sharding: Any = getattr(optimizer, "_inner_opt", None)
        if type(sharding).__name__ == "DygraphShardingOptimizerV2" or getattr(sharding, "tensor_fusion", False):
            raise UserError(
                "Checkpoints cannot contain the optimizer states of split_param, enable_stage1_tensor_fusion and "
                "enable_stage1_overlap in --sharding_parallel_config. Remove these words, or use --sharding stage2."
            )
        self._owners: dict[str, int] = getattr(sharding, "_param2rank", None) or {}
        self.rank: int = getattr(sharding, "_sharding_rank", 0) if self._owners else 0
        inner: Any = optimizer
        while getattr(inner, "_inner_opt", None) is not None:
            inner = inner._inner_opt
        self._inner = inner

    def owner(self, parameter: paddle.Tensor) -> int:
        """Return the rank of the sharding group that updates a parameter and keeps its states; 0 without sharding."""
        return self._owners.get(parameter.name, 0)

    def owns(self, parameter: paddle.Tensor) -> bool:
        """Return whether this rank updates a parameter."""
        return not self._owners or self.owner(parameter) == self.rank

    def states(self, parameter: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Return the states of a parameter on this rank by kind ("master_weights", "moment1", ...); {} before an update."""
        master = self._inner._master_weights.get(parameter.name)
        found = {} if master is None else {MASTER_WEIGHTS: master}
        key = parameter.name if master is None else master.name
        for kind, tensors in self._inner._accumulators.items():
            if key in tensors:
                found[kind] = tensors[key]
        return found

    def create(self, parameters: Iterable[paddle.Tensor]) -> None:
        """Create the states of parameters that this rank owns, unless they exist.

        Args:
            parameters: Trained parameters.
        """
        block = paddle.static.default_main_program().global_block()
        with paddle.no_grad():
            self._inner._create_accumulators(block, list(parameters))

    def create_loaded(self, parameters: Iterable[paddle.Tensor]) -> None:
        """Create the states that `set_state_dict` has left to the first update, so that a checkpoint before it has them."""
        waiting = list(self._inner._accumulators_holder)
        loaded = {p.name for p in parameters if any(name.startswith(f"{p.name}_") for name in waiting)}
        self.create(p for p in self._inner._parameter_list if p.name in loaded and p.trainable)
