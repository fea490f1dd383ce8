"""Seconds of the forward and backward pass of one micro-batch through each chunk of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from paddle_llm.config.layout import Layout
from paddle_llm.planner.job import BYTES, Job
from paddle_llm.planner.shapes.stages import Chunk, chunks_of
from paddle_llm.planner.time.communication import ring_of
from paddle_llm.planner.time.kernels import Seconds, Work, kernel_seconds
from paddle_llm.planner.time.layers import embedding_work, first_trained_layer, head_work, layer_work
from paddle_llm.planner.time.machine import Machine

_HOST_LINK = 25e9  # bytes per second between a GPU and host memory over PCIe 4


@dataclass(frozen=True)
class Passes:
    """One micro-batch through one chunk.

    Attributes:
        forward: Forward pass.
        backward: Backward pass, with what it computes again.
    """

    forward: Seconds
    backward: Seconds


@dataclass(frozen=True)
class _Parts:
    """Seconds of the parts of a model; passes of all layers are alike but for recompute and frozen layers."""

    layer: Passes
    kept_layer: Passes
    frozen_layer: Passes
    embedding: Passes
    head: Passes


def chunk_passes(job: Job, machine: Machine) -> list[Passes]:
    """Return the passes of each chunk, by its position in the model.

    Args:
        job: Training.
        machine: Device and links.
    """
    parts, first = _parts(_of_micro_batch(job), machine), first_trained_layer(_trained_part(job))
    stages = chunks_of(job.model.num_hidden_layers, job.layout)
    positions = [stage[chunk] for chunk in range(len(stages[0])) for stage in stages]
    return [_chunk(chunk, parts, job, first) for chunk in positions]


def _chunk(chunk: Chunk, parts: _Parts, job: Job, first_trained: int) -> Passes:
    frozen = len(range(chunk.layers.start, min(chunk.layers.stop, first_trained)))
    kept = sum(number in chunk.layers and number >= first_trained for number in job.recompute.kept_layers)
    counts = (
        (parts.layer, len(chunk.layers) - frozen - kept),
        (parts.kept_layer, kept),
        (parts.frozen_layer, frozen),
        (parts.embedding, int(chunk.has_embedding)),
        (parts.head, int(chunk.has_head)),
    )
    forward = backward = Seconds()
    for passes, count in counts:
        if count:
            forward = forward.plus(passes.forward.times(count))
            backward = backward.plus(passes.backward.times(count))
    return Passes(forward, backward)


def _of_micro_batch(job: Job) -> Job:
    """Return the job without what does not change the passes of a layer, so that results can be cached."""
    layout = job.layout
    alone = Layout(tensor=layout.tensor, sequence_parallel=layout.sequence_parallel, pipeline=min(layout.pipeline, 2))
    recompute = replace(job.recompute, kept_layers=frozenset())
    return replace(job, layout=alone, accumulation=1, recompute=recompute, bucket_bytes=None, rank_order="pp_first")


def _trained_part(job: Job) -> Job:
    return Job(model=job.model, layout=Layout(), seq_length=1, method=job.method, kernels=job.kernels)


@lru_cache(maxsize=4096)
def _parts(job: Job, machine: Machine) -> _Parts:
    first = first_trained_layer(_trained_part(job))
    last = layer_work(job, job.model.num_hidden_layers - 1)
    forward = seconds_of(last.forward, job, machine)
    recomputed = seconds_of(last.backward, job, machine)
    if job.recompute.offload:
        # The input of each layer is copied to host memory in the forward pass and back in the backward pass.
        copied = Seconds(elementwise=_activation(job) / job.layout.tensor / _HOST_LINK)
        forward, recomputed = forward.plus(copied), recomputed.plus(copied)
    gradient = seconds_of(last.gradient, job, machine)
    if job.layout.sequence_parallel and machine.framework.gathers_again:
        again = Seconds(collectives=2 * ring_of(job, "tensor", machine).gather(_activation(job)))
        recomputed, gradient = recomputed.plus(again), gradient.plus(again)
    frozen = layer_work(job, 0).forward if first else last.forward
    embedding, head = embedding_work(job), head_work(job)
    return _Parts(
        layer=Passes(forward, recomputed),
        kept_layer=Passes(seconds_of(last.forward, job, machine), gradient),
        frozen_layer=Passes(seconds_of(frozen, job, machine), Seconds()),
        embedding=Passes(seconds_of(embedding[0], job, machine), seconds_of(embedding[1], job, machine)),
        head=Passes(seconds_of(head[0], job, machine), seconds_of(head[1], job, machine)),
    )


def _activation(job: Job) -> float:
    """Return the bytes of the hidden states of a micro-batch."""
    return job.micro_batch * job.seq_length * job.model.hidden_size * BYTES[job.precision.compute]


def seconds_of(work: Work, job: Job, machine: Machine) -> Seconds:
    """Return the seconds of some work with its collectives, which wait for the kernels before them."""
    ring = ring_of(job, "tensor", machine)
    collectives = sum(map(ring.all_reduce, work.reduced)) + sum(map(ring.gather, work.gathered))
    return kernel_seconds(work, job, machine)._replace(collectives=collectives)
