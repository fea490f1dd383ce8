"""AdaLoRA (Zhang et al. 2023): W + P diag(E) Q, where the least important ranks are removed during training.

Here P is `lora_A` [in, r], E is `lora_E` [r] and Q is `lora_B` [r, out]. A triplet is a column of P, an entry of E
and a row of Q.

    penalty      gamma (|P^T P - 1|^2 + |Q Q^T - 1|^2) keeps the triplets apart (eq. 4). Its gradient is added in the backward
                 pass, once per optimizer step, so that the reported loss remains that of the data
    importance   s(E_i) + mean_j s(P_ji) + mean_j s(Q_ij), where s is the running mean of |w dL/dw| times that of its deviation
                 (eq. 8 to 11, beta 0.85 each)
    budget       the number of triplets of all matrices: `initial_rank` each until the end of the warm-up, then decreasing
                 cubically to `rank` each on average at the start of the final phase (eq. 12). The E of the least
                 important triplets are set to zero

Every rank has the same importance: each tensor's part is computed on the rank that holds its gradient, and the parts
are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.autograd import PyLayer
from paddlenlp.trainer import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paddle_llm.core.errors import UserError
from paddle_llm.parallel.mesh import Axis, current_mesh
from paddle_llm.parallel.zero.buckets import gradient_of
from paddle_llm.parallel.zero.owners import owns
from paddle_llm.peft.attachment import Added, Attachment, active_attachment
from paddle_llm.peft.method import Method

BETA = 0.85
GradientOf = Callable[[paddle.Tensor], "paddle.Tensor | None"]  # None: another rank has the gradient


# ---- the penalty ----------------------------------------------------------------------------------------------------


class WithPenalty(PyLayer):
    """The identity of a parameter, whose gradient includes that of weight * |W W^T - 1|^2.

    W [K, n] has the rows that should be orthogonal. The parameter is kept as an attribute and not saved for the
    backward pass: recompute returns a saved transposed view in the wrong order (paddle 3.3.1 loses its strides).
    """

    @staticmethod
    def forward(
        ctx: Any, parameter: paddle.Tensor, in_columns: bool, weight: float, axis: Axis | None
    ) -> paddle.Tensor:
        """Return a copy of the parameter."""
        ctx.parameter, ctx.in_columns, ctx.weight, ctx.axis = parameter, in_columns, weight, axis
        return parameter.clone()

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        """Add the gradient of the penalty."""
        values = ctx.parameter.detach().astype("float32")
        matrix_Kn = values.t() if ctx.in_columns else values
        off_KK = paddle.matmul(matrix_Kn, matrix_Kn, transpose_y=True)
        if ctx.axis is not None:  # each rank has some of the columns
            dist.all_reduce(off_KK, group=ctx.axis.group)
        off_KK = off_KK - paddle.eye(off_KK.shape[0])
        penalty_Kn = 4 * ctx.weight * paddle.matmul(off_KK, matrix_Kn)
        return grad + (penalty_Kn.t() if ctx.in_columns else penalty_Kn).astype(grad.dtype)


def penalty(attachment: Attachment, a: paddle.Tensor, b: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Return P and Q as the forward pass uses them in training."""
    weight = attachment.method.orthogonal_weight * attachment.penalty_share
    if not weight or not paddle.is_grad_enabled():
        return a, b
    split = [attachment.axis if parameter.is_distributed else None for parameter in (a, b)]
    return WithPenalty.apply(a, True, weight, split[0]), WithPenalty.apply(b, False, weight, split[1])


# ---- the budget -----------------------------------------------------------------------------------------------------


def budget_at(step: int, steps: int, method: Method, matrices: int) -> int:
    """Return the number of triplets of all matrices after an optimizer step (eq. 12).

    Args:
        step: The step, from 1.
        steps: Number of all steps.
        method: Settings of AdaLoRA.
        matrices: Number of matrices with AdaLoRA.
    """
    first, last = method.initial_rank * matrices, method.rank * matrices
    begin, end = round(method.warmup_ratio * steps), steps - round(method.final_ratio * steps)
    if step < begin:
        return first
    if step >= end:
        return last
    remaining = 1 - (step - begin) / (end - begin)
    return round(last + (first - last) * remaining**3)


@dataclass
class _RunningMeans:
    """Running means of one tensor: of |w dL/dw|, and of its distance from that mean."""

    sensitivity: np.ndarray | float = 0.0
    uncertainty: np.ndarray | float = 0.0

    def update(self, now: np.ndarray) -> np.ndarray:
        self.sensitivity = BETA * self.sensitivity + (1 - BETA) * now
        self.uncertainty = BETA * self.uncertainty + (1 - BETA) * np.abs(now - self.sensitivity)
        return self.sensitivity * self.uncertainty


@dataclass
class Budget:
    """The importance of all triplets, and which of them remain.

    Args:
        attachment: Attachment of AdaLoRA.
        steps: Number of all training steps.

    Attributes:
        kept: [matrices, initial rank], False for removed triplets.
    """

    attachment: Attachment
    steps: int
    kept: np.ndarray = field(init=False)
    _running: dict[str, _RunningMeans] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tensors: dict[str, dict[str, Added]] = {}
        for tensor in self.attachment.added:
            path, _, which = tensor.name.rpartition(".")
            self._tensors.setdefault(path, {})[which] = tensor
        self.kept = np.ones((len(self._tensors), self.attachment.method.initial_rank), bool)
        self._scores = np.zeros(self.kept.shape)

    def observe(self, gradient_of: GradientOf) -> None:
        """Process one step's reduced gradients, before the update. Collective over tensor and sharding ranks.

        Args:
            gradient_of: Function from a parameter to its gradient; None if another rank has it.
        """
        scores = np.zeros(self.kept.shape)
        products = _on_host(_weighted_gradients(self.attachment.added, gradient_of))
        for row, tensors in enumerate(self._tensors.values()):
            for which, tensor in tensors.items():
                scores[row] += self._part(which, tensor, products.get(tensor.name))
        mesh = current_mesh(self.attachment.layout)
        for axis in (mesh.tensor, mesh.sharding):
            scores = _summed(scores, axis)
        self._scores = scores

    def _part(self, which: str, tensor: Added, product: np.ndarray | None) -> np.ndarray | float:
        """Return what this rank's part of a tensor adds to the scores [K] of its triplets.

        Args:
            which: "lora_A", "lora_E" or "lora_B".
            tensor: The tensor.
            product: |w dL/dw|; None if another rank has the gradient.
        """
        counts_elsewhere = not tensor.shard.is_split and self.attachment.axis.rank > 0
        if product is None:
            return 0.0
        importance = self._running.setdefault(tensor.name, _RunningMeans()).update(product)
        if counts_elsewhere:
            return 0.0
        if which == "lora_E":
            return importance
        across = 0 if which == "lora_A" else 1
        return importance.sum(axis=across) / tensor.shard.shape[across]

    @paddle.no_grad()
    def allocate(self, step: int) -> None:
        """Choose the remaining triplets after the update of a step, if it is due, and set the others to zero."""
        method = self.attachment.method
        end = self.steps - round(method.final_ratio * self.steps)
        if step == end or (step < end and step % method.budget_interval == 0):
            count = budget_at(step, self.steps, method, len(self.kept))
            order = np.argsort(-self._scores, axis=None, kind="stable")
            self.kept = np.zeros(self.kept.size, bool)
            self.kept[order[:count]] = True
            self.kept = self.kept.reshape(self._scores.shape)
        elif step < end:
            return  # between two allocations, removed triplets may recover (section 3.3)
        for row, tensors in enumerate(self._tensors.values()):
            parameter = tensors["lora_E"].parameter
            parameter.set_value(parameter * paddle.to_tensor(self.kept[row]).astype(parameter.dtype))

    def tensors(self) -> Iterator[tuple[str, paddle.Tensor, np.ndarray]]:
        """Yield name, parameter and values of the state that a checkpoint contains."""
        for row, tensors in enumerate(self._tensors.values()):
            yield "kept", tensors["lora_E"].parameter, self.kept[row]
            for tensor in tensors.values():
                means = self._running.get(tensor.name)
                if means is not None:
                    yield "sensitivity", tensor.parameter, np.asarray(means.sensitivity)
                    yield "uncertainty", tensor.parameter, np.asarray(means.uncertainty)

    def restore_tensors(
        self, read: Callable[[str, paddle.Tensor], np.ndarray | None], owns: Callable[[paddle.Tensor], bool]
    ) -> None:
        """Continue from what `tensors` yielded.

        Args:
            read: Function from name and parameter to the saved values; None if there are none.
            owns: Function that returns whether this rank has the gradient of a parameter.
        """
        for row, tensors in enumerate(self._tensors.values()):
            kept = read("kept", tensors["lora_E"].parameter)
            if kept is not None:
                self.kept[row] = kept
            for tensor in tensors.values():
                found = [read(name, tensor.parameter) for name in ("sensitivity", "uncertainty")]
                if found[0] is not None and found[1] is not None and owns(tensor.parameter):
                    self._running[tensor.name] = _RunningMeans(found[0], found[1])

    def restore_old(self, state: dict[str, Any]) -> None:
        """Continue from the state in a checkpoint of version 0.2 or earlier."""
        self.kept = state["kept"]
        self._running = {name: _RunningMeans(*means) for name, means in state["running"].items()}


def _weighted_gradients(added: Iterable[Added], gradient_of: GradientOf) -> dict[str, paddle.Tensor]:
    """Return |w dL/dw| in fp32, by name, of the tensors whose gradients this rank has."""
    found = {}
    for tensor in added:
        gradient = gradient_of(tensor.parameter)
        if gradient is not None:
            found[tensor.name] = (tensor.parameter.astype("float32") * gradient.astype("float32")).abs()
    return found


def _on_host(tensors: dict[str, paddle.Tensor]) -> dict[str, np.ndarray]:
    """Copy tensors of one type from the device in a single transfer."""
    if not tensors:
        return {}
    flat = paddle.concat([tensor.flatten() for tensor in tensors.values()]).numpy()
    ends = np.cumsum([tensor.size for tensor in tensors.values()])[:-1]
    parts = np.split(flat, ends)
    return {name: part.reshape(tensor.shape) for (name, tensor), part in zip(tensors.items(), parts, strict=True)}


def _summed(values: np.ndarray, axis: Axis) -> np.ndarray:
    if axis.size == 1:
        return values
    tensor = paddle.to_tensor(values)
    dist.all_reduce(tensor, group=axis.group)
    return tensor.numpy()


class BudgetCallback(TrainerCallback):
    """Allocates the budget during training (see `add_budget_callback`). Follows the protocol of `training/callbacks.py`."""

    state_name = "adalora"

    def __init__(self, trainer: Trainer, attachment: Attachment) -> None:
        self.budget = Budget(attachment, trainer.args.max_steps)
        self._trainer = trainer
        # The penalty counts once per step, so each backward pass adds a share of it.
        attachment.penalty_share = 1 / trainer.args.gradient_accumulation_steps

    def on_gradients(self, norm: paddle.Tensor) -> None:
        """Take the gradients of a step into account."""
        self.budget.observe(self._gradient_of)

    def state(self) -> dict[str, Any]:
        """Return the state of the budget beside `tensors`: nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`, or from the whole state in a checkpoint of version 0.2 or earlier."""
        if state:
            self.budget.restore_old(state)

    def tensors(self) -> Iterator[tuple[str, paddle.Tensor, np.ndarray]]:
        """Yield name, parameter and values of the budget's state, for a checkpoint."""
        return self.budget.tensors()

    def restore_tensors(self, read: Callable[[str, paddle.Tensor], np.ndarray | None]) -> None:
        """Continue from what `tensors` yielded.

        Args:
            read: Function from name and parameter to the saved values; None if there are none.
        """
        self.budget.restore_tensors(read, partial(owns, self._trainer.optimizer))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Allocate the budget after a step."""
        self.budget.allocate(state.global_step)

    def _gradient_of(self, parameter: paddle.Tensor) -> paddle.Tensor | None:
        return gradient_of(parameter) if owns(self._trainer.optimizer, parameter) else None


def add_budget_callback(trainer: Trainer) -> BudgetCallback | None:
    """Add a callback that allocates AdaLoRA's budget to a trainer whose network has AdaLoRA.

    Args:
        trainer: A `PretrainTrainer`, which calls `on_gradients` of its callbacks.

    Returns:
        The callback that was added; None for another network.

    Raises:
        UserError: If the training uses float16: the loss is scaled and the penalty is not.
    """
    attachment = active_attachment(trainer.model)
    if attachment is None or attachment.method.name != "adalora":
        return None
    if trainer.args.fp16:
        raise UserError(
            "AdaLoRA does not support --fp16, because its penalty ignores the loss scale. Use --bf16 or --lora."
        )
    callback = BudgetCallback(trainer, attachment)
    trainer.add_callback(callback)
    return callback
