"""Seconds of one optimizer step, by what they are spent on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddle_llm.planner import flops
from paddle_llm.planner.job import BYTES, Job
from paddle_llm.planner.pipeline.events import ChunkTimes, step_seconds
from paddle_llm.planner.shapes.weights import RankWeight, weights_of_stage
from paddle_llm.planner.time.communication import Ring, ring_of
from paddle_llm.planner.time.kernels import Seconds, peak_of
from paddle_llm.planner.time.machine import Machine
from paddle_llm.planner.time.passes import Passes, chunk_passes

_HOST_LINK = 25e9  # bytes per second between a GPU and host memory over PCIe 4
_CLIP_PASSES = 3  # over all gradients: their norm, and scaling


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step. Compute and collectives are those of the pipeline stage with the most work.

    Attributes:
        compute: Forward and backward passes of all micro-batches, by kind.
        host_wait: Time in which devices wait for the host to launch kernels.
        pipeline_wait: Time in which the stage waits for other stages.
        weights: Gathering weights (sharding stage 3), as far as no computation hides it.
        reduction: Reduction of gradients, as far as no backward pass hides it.
        broadcast: Broadcast or gather of updated weights (sharding stages 1 and 2).
        update: Clipping and optimizer.
    """

    compute: Seconds
    host_wait: float
    pipeline_wait: float
    weights: float
    reduction: float
    broadcast: float
    update: float

    @property
    def seconds(self) -> float:
        """Seconds of the step."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Return the seconds by name."""
        return {
            "matrix products": self.compute.products,
            "attention": self.compute.attention,
            "element-wise kernels": self.compute.elementwise,
            "tensor-parallel collectives": self.compute.collectives,
            "waiting for the host": self.host_wait,
            "waiting for other stages": self.pipeline_wait,
            "gathering weights": self.weights,
            "reduction of gradients": self.reduction,
            "broadcast of weights": self.broadcast,
            "optimizer step": self.update,
        }


def step_time(job: Job, machine: Machine) -> StepTime:
    """Return the step time of a training.

    Args:
        job: Training.
        machine: Device, links and efficiency.
    """
    passes = chunk_passes(job, machine)
    pipelines = _pipeline_seconds(job, machine, passes)
    heaviest = _heaviest_stage(job, passes)
    mine = passes[heaviest :: job.layout.pipeline]
    forward, backward = Seconds(), Seconds()
    for one in mine:
        forward, backward = forward.plus(one.forward), backward.plus(one.backward)
    count = job.accumulation
    compute = forward.plus(backward).times(count)
    busy = count * sum(one.forward.total + one.backward.total for one in mine)
    held = weights_of_stage(job, heaviest)
    weights, reduction, broadcast = _exchange(job, machine, held, forward, backward)
    return StepTime(
        compute=compute._replace(host=count * (forward.host + backward.host)),
        host_wait=max(0.0, busy - compute.device),
        pipeline_wait=max(0.0, pipelines - busy),
        weights=weights,
        reduction=reduction,
        broadcast=broadcast,
        update=_update_seconds(job, machine, held),
    )


def tokens_per_second(job: Job, time: StepTime) -> float:
    """Return the tokens per second of a whole job."""
    return job.tokens_per_step / time.seconds


def mfu(job: Job, time: StepTime, machine: Machine) -> float | None:
    """Return the model FLOPs utilization that a step time means; None if the peak of the device is not known."""
    peak = peak_of(job, machine)
    speed = tokens_per_second(job, time) / job.layout.world_size
    return flops.mfu(flops.flops_per_token(job.model, job.seq_length), speed, peak or None)


def _heaviest_stage(job: Job, passes: list[Passes]) -> int:
    stages = job.layout.pipeline
    work = [sum(one.forward.total + one.backward.total for one in passes[stage::stages]) for stage in range(stages)]
    return int(np.argmax(work))


def _pipeline_seconds(job: Job, machine: Machine, passes: list[Passes]) -> float:
    """Return the seconds until all stages have run their passes. A rank waits until its transfers are complete."""
    layout = job.layout
    transfer = 0.0
    if layout.pipeline > 1:
        size = job.micro_batch * job.seq_length * job.model.hidden_size * BYTES[job.precision.compute]
        # Each tensor-parallel rank sends its part; the receivers gather the parts unless they keep them split.
        transfer = ring_of(job, "pipeline", machine).send(size / layout.tensor)
        if not layout.sequence_parallel:
            transfer += ring_of(job, "tensor", machine).gather(size)
    times = ChunkTimes(
        np.array([one.forward.total for one in passes]),
        np.array([one.backward.total for one in passes]),
        np.zeros(len(passes)),
        np.full(len(passes) - 1, transfer),
        overlap=False,
    )
    name = "interleaved" if layout.virtual_stages > 1 else "1f1b"
    return float(step_seconds(name, layout.pipeline, job.accumulation, layout.virtual_stages, times))


def _exchange(
    job: Job, machine: Machine, held: list[RankWeight], forward: Seconds, backward: Seconds
) -> tuple[float, float, float]:
    """Return the exposed seconds of gathering weights, reducing gradients and broadcasting updated weights."""
    layout, precision, count = job.layout, job.precision, job.accumulation
    trained = [weight for weight in held if weight.trained]
    gradients = sum(weight.size for weight in trained) * BYTES[precision.gradients]
    updated = sum(weight.size for weight in trained) * BYTES[precision.weights]
    data, sharding = ring_of(job, "data", machine), ring_of(job, "sharding", machine)
    stage = layout.sharding_stage if layout.sharding > 1 else 0
    reduction = data.all_reduce(gradients / (layout.sharding if stage >= 2 else 1))
    if stage == 0:
        return 0.0, reduction, 0.0
    whole = machine.framework.whole_gradients
    if stage == 1:
        reduction += _to_owners(sharding, gradients, len(trained), whole)
        return 0.0, reduction, _to_owners(sharding, updated, len(trained), whole)
    # Stages 2 and 3 reduce buckets of every micro-batch while its backward pass computes.
    buckets = max(1, round(gradients / (job.bucket_bytes or 2**28)))
    hidden = backward.total if job.kernels.device == "gpu" else 0.0
    reduction += count * max(0.0, _to_owners(sharding, gradients, buckets, whole) - hidden)
    if stage == 2:
        return 0.0, reduction, _to_owners(sharding, updated, len(trained), whole)
    # Stage 3 gathers the weights of the next layer while one computes, in both passes.
    size = sum(weight.size for weight in held) * BYTES[precision.weights]
    gathering = _to_owners(sharding, size, len(held), whole)
    on_gpu = job.kernels.device == "gpu"
    exposed = sum(max(0.0, gathering - (one.total if on_gpu else 0.0)) for one in (forward, backward))
    return count * exposed, reduction, 0.0


def _to_owners(ring: Ring, size: float, count: int, whole: bool) -> float:
    return ring.rooted(size, count) if whole else ring.gather(size)


def _update_seconds(job: Job, machine: Machine, held: list[RankWeight]) -> float:
    """Return the seconds of clipping and the optimizer: reading and writing gradients, weights and moments."""
    precision = job.precision
    trained = [weight for weight in held if weight.trained]
    elements = sum(weight.size for weight in trained)
    degree = job.layout.sharding if job.layout.sharding_stage else 1
    owned, owners = elements / degree, len(trained) / degree
    gradient, moment = BYTES[precision.gradients], BYTES[precision.moments]
    state = 2 * (2 * moment + (4 if precision.master_weights else BYTES[precision.weights]))
    traffic = owned * (gradient + state + (BYTES[precision.weights] if precision.master_weights else 0))
    traffic += (_CLIP_PASSES if job.clips_gradients else 0) * gradient * owned
    device = traffic / (machine.gpu.memory_bandwidth * machine.efficiency.bandwidth)
    host = owners * machine.framework.update_kernels * machine.efficiency.launch
    copies = 2 * owned * (2 * moment + 4 * precision.master_weights) / _HOST_LINK if job.offload_optimizer else 0.0
    return max(device, host) + copies
