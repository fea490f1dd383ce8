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
    """A network and what is done with it.

    Attributes:
        fields: of RunConfig; overrides: of the network's config.json.
        frozen: parameters whose name contains one of these are not trained.
        evaluate: between the micro batches and after each step.
        offload: an owner's weights are in host memory between uses.
        prefetch: the next unit's weights are brought while one computes.
        unused: the network has a layer that it never calls.
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
    """On one rank: (stage 2's, stage 3's) numbers of every run; see `train`. Fleet is brought up once."""
    start_fleet(layout)
    return {name: tuple(train(run, folder / name, layout, stage) for stage in (2, 3)) for name, run in runs.items()}


def train(run: Run, folder: Path, layout: Layout, stage: int) -> dict[str, Any]:
    """A few steps of AdamW with clipping.

    Returns {"losses", "evaluations", "weights": {name: full array}; of the elements of weights: "held" (the most that were
    there when a forward or backward computation was looked at), "looks" (how often), "rest" (when a step was over), "all";
    with stage 3 "own" (those that this rank owns and keeps on the device), "unit" (of the largest unit, without its own),
    "units" (of the two largest); with prefetch "ahead" (how many times weights were on their way before they were needed)}.
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
    watch = _Watch(model)
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
    found["held"], found["looks"], found["ahead"] = watch.most, watch.looks, sum(ahead)
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
    """Return a list that gets, for every unit that begins to compute, 1 if its weights were already being gathered."""
    ahead: list[int] = []
    gather = weights._gather_unit

    def counted(unit: Any) -> None:
        ahead.append(int(unit in weights._arriving))
        gather(unit)

    weights._gather_unit = counted
    return ahead


class _Watch:
    """Counts the weights that are there whenever a layer begins or ends its forward, or a gradient is computed."""

    def __init__(self, model: Any):
        self.most = self.looks = 0
        self._model = model
        for layer in model.sublayers():
            layer.register_forward_pre_hook(lambda *_: self._look())
            layer.register_forward_post_hook(lambda *_: self._look())
        for parameter in model.parameters():
            if not parameter.stop_gradient:
                parameter._register_backward_hook(lambda *_: self._look())

    def _look(self) -> None:
        from paddle_llm.parallel.zero.stage3 import held_weight_elements

        self.looks += 1
        self.most = max(self.most, held_weight_elements(self._model))


def _evaluate(model: Any, inputs: dict[str, Any]) -> float:
    import paddle

    model.eval()
    with paddle.no_grad():
        loss = float(model(**inputs)[0])
    model.train()
    return loss


def _batch(family: str, rank: int, index: int) -> dict[str, Any]:
    """Inputs and labels of 2 samples that differ between ranks and micro batches."""
    inputs = batch(family)
    inputs["input_ids"] = (inputs["input_ids"] + 7 * rank + 13 * index) % 120
    return inputs
