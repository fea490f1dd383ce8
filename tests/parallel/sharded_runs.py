"""A small network in stage 2 without a trainer: any micro-batches, any parameters; runs inside ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 8


def network() -> Any:
    """`once`, `twice` (used two times, recomputed), `unused`, `frozen`; the same weights on every rank."""
    import paddle
    from paddle import nn
    from paddle.distributed.fleet.utils import recompute

    class Network(nn.Layer):
        def __init__(self):
            super().__init__()
            self.once = nn.Linear(WIDTH, WIDTH)
            self.twice = nn.Linear(WIDTH, WIDTH)
            self.unused = nn.Linear(WIDTH, WIDTH)
            self.frozen = nn.Linear(WIDTH, WIDTH)
            self.last = nn.Linear(WIDTH, 4 * WIDTH)
            self.skip = False  # leave `once` out

        def forward(self, x_BW):
            x_BW = recompute(self.twice, x_BW).tanh()
            x_BW = (x_BW if self.skip else self.once(x_BW)).tanh()
            x_BW = recompute(self.twice, self.frozen(x_BW)).tanh()
            return self.last(x_BW).square().mean()

    paddle.seed(3)
    model = Network()
    for parameter in model.frozen.parameters():
        parameter.stop_gradient = True
    return model


def batch(index: int) -> Any:
    import paddle

    x_BW = np.random.default_rng(index).normal(size=[4, WIDTH]).astype("float32")
    return paddle.to_tensor(x_BW, stop_gradient=False)  # or else Paddle sees nothing to recompute in the first layer


def fleet_of(sharding: int) -> None:
    """Initialise fleet with a sharding degree and no other parallelism."""
    from paddle_llm.parallel.gloo.backend import install_gloo_backend

    install_gloo_backend()
    from paddle.distributed import fleet

    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {"dp_degree": 1, "mp_degree": 1, "pp_degree": 1, "sharding_degree": sharding}
    fleet.init(is_collective=True, strategy=strategy)


def equal_after_wrapping(fused: bool) -> tuple[bool, int]:
    """Return whether both ranks have the same weights after fleet has wrapped the network, and whether it made fused buffers."""
    import paddle
    import paddle.distributed as dist
    from paddle.distributed import fleet, parallel

    from paddle_llm.parallel.zero.first_broadcast import broadcast_weight_by_weight

    fleet_of(2)
    buffers = []
    build_groups = parallel.build_groups
    parallel.build_groups = lambda *args: buffers.extend(build_groups(*args)) or build_groups(*args)
    if not fused:
        broadcast_weight_by_weight()
    paddle.seed(dist.get_rank())
    model = paddle.nn.Linear(WIDTH, WIDTH)
    before, after = [], []
    dist.all_gather_object(before, model.weight.numpy())
    fleet.distributed_model(model)
    dist.all_gather_object(after, model.weight.numpy())
    assert (before[0] != before[1]).any()
    return bool((after[0] == after[1]).all() and (after[0] == before[0]).all()), len(buffers)


def adamw(parameters: list, max_norm: float) -> Any:
    import paddle

    clip = paddle.nn.ClipGradByGlobalNorm(max_norm)
    return paddle.optimizer.AdamW(1e-2, parameters=parameters, grad_clip=clip, weight_decay=0.1, epsilon=1e-4)


def optimizer_of(model: Any, max_norm: float, main_grad: bool) -> Any:
    """Return fleet's optimizer over AdamW, on request with the float32 gradients of mixed precision."""
    from paddle.distributed import fleet
    from paddle.distributed.fleet.utils import mix_precision_utils

    optimizer = adamw(model.parameters(), max_norm)
    if main_grad:
        mix_precision_utils.MixPrecisionLayer(model, dtype="bfloat16")
        optimizer = mix_precision_utils.MixPrecisionOptimizer(optimizer)
    return fleet.distributed_optimizer(optimizer)


def alone(max_norm: float, steps: int, micro_batches: int) -> dict[str, np.ndarray]:
    """Return the weights of one process after the same number of steps on the same global batches."""
    model = network()
    optimizer = adamw([p for p in model.parameters() if p.trainable], max_norm)
    for step in range(steps):
        for index in range(micro_batches):
            (model(batch(step * micro_batches + index)) / micro_batches).backward()
        optimizer.step()
        optimizer.clear_grad()
    return {name: p.numpy() for name, p in model.named_parameters()}


def shared(
    bucket_mb: float,
    max_norm: float,
    steps: int,
    micro_batches: int,
    main_grad: bool = False,
    prepare: Callable[[Any], None] | None = None,
    skip: tuple[int, int] | None = None,
) -> tuple[dict[str, np.ndarray], list[set[str]]]:
    """Run one of two ranks that use alternate micro-batches.

    Args:
        prepare: is called with the module of the buckets before anything is built.
        skip: (rank, step) on which `once` does not take part.

    Returns:
        (weights after the steps, the parameters whose gradients are here after each backward pass).
    """
    fleet_of(2)
    import paddle.distributed as dist

    from paddle_llm.parallel.zero import buckets as gradient_buckets
    from paddle_llm.parallel.zero.stage2 import ShardedGradients

    if prepare:
        prepare(gradient_buckets)
    model = network()
    optimizer = optimizer_of(model, max_norm, main_grad)
    gradients = ShardedGradients(optimizer, bucket_mb=bucket_mb)
    held = []
    for step in range(steps):
        model.skip = skip == (dist.get_rank(), step)
        for index in range(dist.get_rank(), micro_batches, 2):
            (model(batch(step * micro_batches + index)) * 2 / micro_batches).backward()
            left = {n for n, p in model.named_parameters() if gradient_buckets.gradient_of(p) is not None}
            held.append(left | {n for n, p in model.named_parameters() if p.name in gradients.sums})
        gradients.hand_over()
        optimizer.step()
        optimizer.clear_grad()
    owned = {n for n, p in model.named_parameters() if p.trainable and gradients.owner(p) == gradients.rank}
    assert all(names <= owned for names in held)
    return {name: p.numpy() for name, p in model.named_parameters()}, held


def mean_over_ranks(values: list[float], micro_batches: int, dtype: str) -> list[float]:
    """Return the owner's sum for a parameter of one element, whose gradient on each rank is given."""
    import paddle
    import paddle.distributed as dist
    from paddle.distributed import fleet

    from paddle_llm.parallel.zero.buckets import GradientBuckets, gradient_of
    from paddle_llm.parallel.zero.order_check import SameOrder

    fleet_of(2)
    group = fleet.get_hybrid_communicate_group().get_sharding_parallel_group()
    parameter = paddle.nn.Linear(1, 1, bias_attr=False).weight
    parameter._clear_data()
    paddle.zeros([1, 1], dtype=dtype)._share_buffer_to(parameter)
    buckets = GradientBuckets(group, dist.get_rank(), lambda p: 0, 1024, SameOrder(group, [parameter]))
    for _ in range(micro_batches):
        parameter._copy_gradient_from(paddle.full([1, 1], values[dist.get_rank()], dtype=dtype))
        buckets.add(parameter)
        buckets.send_all()
    buckets.hand_over([parameter])
    gradient = gradient_of(parameter)
    return [] if gradient is None else gradient.astype("float32").flatten().tolist()


def raised_again() -> list[bool]:
    """Return whether a lost exception is raised again: at the next gradient and at the end of the step."""
    import paddle
    from paddle.distributed import fleet

    from paddle_llm.parallel.zero.order_check import OrderError, SameOrder

    fleet_of(2)
    first, second = paddle.nn.Linear(2, 2).parameters()
    order = SameOrder(fleet.get_hybrid_communicate_group().get_sharding_parallel_group(), [first, second])
    order.check(0, [first])
    order.end_of_backward()
    order.end_of_step()
    reported = []
    for occasion in (
        lambda: order.check(0, [second]),
        lambda: order.check(0, [first]),
        order.end_of_backward,
        order.end_of_step,
    ):
        try:
            occasion()
            reported.append(False)
        except OrderError as error:
            reported.append("reduces the gradients of" in str(error))
    return reported


def finished_when_waited_for(buckets: Any) -> None:
    """Simulate reductions on a GPU: the sum arrives when the task is waited for, not when the call returns."""
    from types import SimpleNamespace

    import paddle.distributed as dist

    class Late:
        def __init__(self, *args, **kwargs):
            self.call = (args, kwargs)

        def is_completed(self) -> bool:
            return False

        def wait(self) -> None:
            args, kwargs = self.call
            dist.reduce(*args, **kwargs)

    buckets.dist = SimpleNamespace(reduce=Late)


def held_by_trainer(folder: Path, layout: Any, bucket_mb: float, changes: dict[str, Any]) -> dict[str, int]:
    """Return the gradients that one rank holds during the backward passes of the first step of a real training.

    Sampled at every gradient, when it has just been made, and at every reduction, when the flat bucket is there.

    Returns:
        elements, bytes: the most that was there (bytes by Paddle's host allocator: what came since the step's
            beginning, less the activations before the first gradient); after: the most after a micro-batch (with a pipeline:
            after all of them), before the optimizer; owned: elements of what this rank owns; share: elements of the largest owner; everything: elements of this rank's part of the network.
    """
    import paddle.distributed as dist
    from paddle.base import core
    from paddlenlp.trainer import TrainerCallback

    from paddle_llm.parallel.process.start import start_process
    from paddle_llm.parallel.zero import stage2 as sharded_gradients
    from paddle_llm.parallel.zero.buckets import gradient_of
    from tests.helpers.pretrain_jobs import config, make_trainer

    start_process("cpu", layout.world_size)
    sharded_gradients.default_bucket_bytes = lambda parameters: int(bucket_mb * 2**20)
    trainer = make_trainer(config(folder, max_steps=1, do_eval=False, **changes), layout)
    parameters = [p for p in trainer.model.parameters() if p.trainable]
    elements, allocated, after, base = [], [], [], []

    def memory() -> int:
        return core.host_memory_stat_current_value("Allocated", 0)

    def held() -> int:
        sums = trainer.sharded_gradients.sums.values() if trainer.sharded_gradients else ()
        in_parameters = [gradient_of(p) for p in parameters if gradient_of(p) is not None]
        return sum(gradient.size for gradient in [*in_parameters, *sums])

    def sample(flat: int = 0) -> None:
        elements.append(held() + flat)
        allocated.append(memory())

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            base.append(memory())

    training_step = trainer.training_step

    def stepped(*args, **kwargs):
        loss = training_step(*args, **kwargs)
        after.append(held())
        return loss

    trainer.training_step = stepped
    reduce = dist.reduce

    def observed(tensor, *args, **kwargs):
        sample(tensor.size)
        return reduce(tensor, *args, **kwargs)

    dist.reduce = observed
    for parameter in parameters:
        parameter._register_backward_hook(lambda *_: sample())  # before stage 2 registers its own
    trainer.add_callback(Watch())
    trainer.train()
    dist.reduce = reduce
    activations = allocated[0] - base[0] - 4 * elements[0]
    owned = [sum(p.size for p in mine if p.trainable) for mine in trainer.optimizer._inner_opt._rank2params.values()]
    return {
        "elements": max(elements),
        "bytes": max(allocated) - base[0] - activations,
        "after": max(after),
        "owned": owned[trainer.optimizer._inner_opt._sharding_rank],
        "share": max(owned),
        "everything": sum(p.size for p in parameters),
    }


def quickstart_loads(degree: int) -> dict[str, list[int]]:
    """Return the trained elements by owner, of the model of the quickstart and of parts of it."""
    import json
    from types import SimpleNamespace

    from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer import DygraphShardingOptimizer
    from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM

    from paddle_llm.parallel.zero.owners import choose_owners

    def loads(owners: Any) -> list[int]:
        return [sum(p.size for p in owned if p.trainable) for owned in owners]

    def fleets() -> list[int]:
        optimizer = SimpleNamespace(_parameter_list=everything, _sharding_world_size=degree)
        return loads(DygraphShardingOptimizer._partition_parameters(optimizer).values())

    file = Path(__file__).parents[2] / "configs" / "models" / "quickstart" / "config.json"
    model = LlamaForCausalLM(LlamaConfig(**json.loads(file.read_text())))
    everything = model.parameters()
    stages: dict[bool, list] = {True: [], False: []}  # of a pipeline of two
    for name, parameter in model.named_parameters():
        stages[any(part in name for part in ("embed_tokens", "layers.0.", "layers.1."))].append(parameter)
    found = {
        "whole": loads(choose_owners(everything, degree)),
        "fleet's": fleets(),
        "first": loads(choose_owners(stages[True], degree)),
        "last": loads(choose_owners(stages[False], degree)),
    }
    for parameter in everything:
        parameter.stop_gradient = parameter.size > 100_000  # all but the attention
    return found | {"attention": loads(choose_owners(everything, degree)), "fleet's attention": fleets()}
