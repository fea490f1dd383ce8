"""Functions of the ranks in the tests of sharding stage 3: the same steps with stages 2 and 3, without a Trainer.

Both stages reduce the same gradients in the same order, so their results are equal bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddle_llm.config.layout import Layout
from tests.helpers.models.layout_steps import start_fleet
from tests.helpers.models.networks import WRITERS, batch, build

STEPS, MICRO_BATCHES = 2, 2


@dataclass(frozen=True)
class Run:
    """A network and how it is trained.

    Attributes:
        family: Family of the network.
        fields: Fields of RunConfig.
        overrides: Overrides of config.json.
        frozen: Substrings of the names of parameters that are not trained.
        evaluate: Whether to evaluate after each micro-batch and each step.
        offload: Whether the weights of an owner are in host memory while they are not used.
        prefetch: Whether the weights of the next unit are gathered while one computes.
        unused: Whether the network has a layer that is never called.
    """

    family: str = "llama"
    fields: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    evaluate: bool = False
    offload: bool = False
    prefetch: bool = False
    unused: bool = False

    def write(self, folder: Path) -> None:
        WRITERS[self.family](folder, num_hidden_layers=2, num_layers=2, n_layer=2, **self.overrides)


def both_stages(runs: dict[str, Run], folder: Path, layout: Layout) -> dict[str, tuple[dict, dict]]:
    """Return (results of stage 2, results of stage 3) of every run on this rank; see `train`. Fleet is initialised once."""
    start_fleet(layout)
    return {name: tuple(train(run, folder / name, layout, stage) for stage in (2, 3)) for name, run in runs.items()}


def train(run: Run, folder: Path, layout: Layout, stage: int) -> dict[str, Any]:
    """Take a few steps of AdamW with clipping.

    Returns:
        Dictionary with "losses", "evaluations", "weights" (name -> full array), "checks" (number of counts of the weights on this
        rank, during forward and backward passes), and numbers of elements of weights: "held" (largest count), "rest" (after each
        step), "all". With stage 3 also "own" (owned by this rank and kept on the device), "unit" (of the largest unit, without
        the owned ones), "units" (of the two largest). With prefetch "ahead" is the number of units whose weights were being
        gathered before they were needed.
    """
    import paddle
    from paddle.distributed import fleet

    from paddle_llm.models.weights.full_weights import full_weights
    from paddle_llm.parallel.zero.stage2 import ShardedGradients
    from paddle_llm.parallel.zero.stage3 import ShardedWeights, held_weight_elements

    # The owner of a parameter is found by its name.
    with paddle.utils.unique_name.guard():
        model = build(folder, layout=layout, **run.fields)
        if run.unused:
            paddle.seed(1)
            model.lm_head.spare = paddle.nn.Linear(64, 3)
        for name, parameter in model.named_parameters():
            parameter.stop_gradient = any(part in name for part in run.frozen)
        optimizer = paddle.optimizer.AdamW(
            1e-3, parameters=model.parameters(), grad_clip=paddle.nn.ClipGradByGlobalNorm(0.5), epsilon=1e-4
        )
        if model.config.recompute:
            model.recompute_enable()
        wrapped, optimizer = fleet.distributed_model(model), fleet.distributed_optimizer(optimizer)
        gradients = ShardedGradients(optimizer, broadcast_weights=stage == 2)
        switches = {"offload": run.offload, "prefetch": run.prefetch}
        weights = ShardedWeights(model, optimizer, gradients, **switches) if stage == 3 else None
    counter = _WeightCounter(model)
    ahead = _count_ahead(weights) if run.prefetch and weights else []
    found: dict[str, Any] = {"losses": [], "evaluations": [], "rest": []}
    for step in range(STEPS):
        for micro in range(MICRO_BATCHES):
            inputs = _batch(run.family, gradients.rank, step * MICRO_BATCHES + micro)
            loss = wrapped(**inputs)[0]
            loss.backward()
            found["losses"].append(float(loss))
            if run.evaluate:
                found["evaluations"].append(_evaluate(model, inputs))
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        found["rest"].append(held_weight_elements(model))
        if run.evaluate:
            found["evaluations"].append(_evaluate(model, inputs))
    family = run.family
    found["weights"] = {name: value for name, value in full_weights(model, family, layout) if value is not None}
    found["held"], found["checks"], found["ahead"] = counter.largest, counter.checks, sum(ahead)
    if weights is not None:
        found["own"] = 0 if run.offload else sum(p.size for p in model.parameters() if weights.owner(p) == weights.rank)
        sizes = [
            sum(p.size for p in unit.parameters if run.offload or weights.owner(p) != weights.rank)
            for unit in weights.units
        ]
        found["unit"], found["units"] = max(sizes), sum(sorted(sizes)[-2:])
    found["all"] = sum(p.size for p in model.parameters())
    return found


def _count_ahead(weights: Any) -> list[int]:
    """Return a list to which every unit that begins to compute adds 1 if its weights were already being gathered, else 0."""
    ahead: list[int] = []
    gather = weights._gather_unit

    def counted(unit: Any) -> None:
        ahead.append(int(unit in weights._arriving))
        gather(unit)

    weights._gather_unit = counted
    return ahead


class _WeightCounter:
    """Counts the weights on this rank whenever a layer begins or ends its forward pass, or a gradient is computed."""

    def __init__(self, model: Any):
        self.largest = self.checks = 0
        self._model = model
        for layer in model.sublayers():
            layer.register_forward_pre_hook(lambda *_: self._count())
            layer.register_forward_post_hook(lambda *_: self._count())
        for parameter in model.parameters():
            if not parameter.stop_gradient:
                parameter._register_backward_hook(lambda *_: self._count())

    def _count(self) -> None:
        from paddle_llm.parallel.zero.stage3 import held_weight_elements

        self.checks += 1
        self.largest = max(self.largest, held_weight_elements(self._model))


def _evaluate(model: Any, inputs: dict[str, Any]) -> float:
    import paddle

    model.eval()
    with paddle.no_grad():
        loss = float(model(**inputs)[0])
    model.train()
    return loss


def _batch(family: str, rank: int, index: int) -> dict[str, Any]:
    """Return inputs and labels of 2 samples that differ between ranks and micro-batches."""
    inputs = batch(family)
    inputs["input_ids"] = (inputs["input_ids"] + 7 * rank + 13 * index) % 120
    return inputs
