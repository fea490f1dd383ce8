"""Activations of a rank over the micro-batches of a step, in the order of the pipeline's schedule."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from paddle_llm.planner.job import BYTES, Job
from paddle_llm.planner.memory.network import Network, loss_gradient
from paddle_llm.planner.memory.tape import Buckets, Leaf, Tape, Value
from paddle_llm.planner.shapes.stages import Chunk, chunks_of
from paddle_llm.planner.shapes.weights import weights_of_stage

FORWARD, HEAD, BACKWARD = "forward", "head and loss", "backward"
# More layers than this in a chunk are extrapolated from two smaller chunks: layers are alike.
_EXACT_LAYERS = 6
# Gradients in flight with sharding stages 2 and 3: `parallel/zero/stage2.py` and `buckets.py`.
_MIN_BUCKETS, _MAX_BUCKETS, _MATRICES, _PARTS = 32 * 2**20, 2048 * 2**20, 4, 4


@dataclass(frozen=True)
class Peaks:
    """Largest number of bytes of activations and transient gradients in each phase of a step.

    Attributes:
        forward: During the forward pass of layers.
        head: During head and loss.
        backward: During the backward pass.
        kept: Kept by the layers of all micro-batches in flight when the head begins, a part of `head`.
    """

    forward: int
    head: int
    backward: int
    kept: int

    def by_phase(self) -> dict[str, int]:
        """Return the bytes of each phase by its name."""
        return {FORWARD: self.forward, HEAD: self.head, BACKWARD: self.backward}


def activation_peaks(job: Job, stage: int) -> Peaks:
    """Return the peaks of a rank in a pipeline stage.

    Args:
        job: The job.
        stage: Number of the stage.
    """
    chunks = chunks_of(job.model.num_hidden_layers, job.layout)[stage]
    count = max(len(chunk.layers) for chunk in chunks)
    kept = len(job.recompute.kept_layers)
    if count <= max(_EXACT_LAYERS, kept + 2) or job.method.last_layers:
        return _simulate(job, stage, chunks)
    few, many = (_simulate(job, stage, tuple(_shortened(chunk, kept + size) for chunk in chunks)) for size in (3, 4))
    further = count - kept - 4
    return Peaks(
        *(
            getattr(many, name) + further * (getattr(many, name) - getattr(few, name))
            for name in ("forward", "head", "backward", "kept")
        )
    )


def _shortened(chunk: Chunk, count: int) -> Chunk:
    layers = range(chunk.layers.start, chunk.layers.start + min(count, len(chunk.layers)))
    return Chunk(layers, chunk.has_embedding, chunk.has_norm, chunk.has_head)


def steps_of(stage: int, job: Job) -> Iterator[tuple[str, int]]:
    """Yield the forward and backward passes of a rank as (kind, chunk), until the pattern repeats.

    Paddle's schedules are 1F1B and its interleaved form (Narayanan et al. 2021).
    """
    stages, virtual = job.layout.pipeline, job.layout.virtual_stages
    total = job.accumulation * virtual if stages > 1 else 1
    waiting = stages - stage - 1
    if virtual > 1:
        waiting = 2 * waiting + (virtual - 1) * stages
    waiting = min(waiting, total)

    def chunk(step: int, backward: bool) -> int:
        number = step % (stages * virtual) // stages
        return virtual - 1 - number if backward else number

    for step in range(waiting):
        yield FORWARD, chunk(step, False)
    repeats = min(total - waiting, 2 if virtual == 1 else stages * virtual + 1)
    for step in range(repeats):
        yield FORWARD, chunk(waiting + step, False)
        yield BACKWARD, chunk(step, True)
    if repeats == total - waiting:
        for step in range(repeats, total):
            yield BACKWARD, chunk(step, True)


def frees_gradients(job: Job) -> bool:
    """Return whether no gradient is held when a step begins; otherwise gradients of zero are held from step to step."""
    return job.release_gradients and job.accumulation == 1 and job.layout.sharding_stage < 2


def _buckets(job: Job, stage: int) -> Buckets | None:
    """Return how stages 2 and 3 collect gradients; by default a bucket has four matrices of average size."""
    if job.layout.sharding == 1 or job.layout.sharding_stage < 2:
        return None
    element = BYTES[job.precision.gradients]
    sizes = [
        weight.size * element for weight in weights_of_stage(job, stage) if weight.trained and len(weight.shape) > 1
    ]
    mean = sum(sizes) // max(len(sizes), 1)
    limit = job.bucket_bytes or min(max(_PARTS * _MATRICES * mean, _MIN_BUCKETS), _MAX_BUCKETS)
    return Buckets(limit // _PARTS, job.layout.sharding, _PARTS - 2 if job.kernels.device == "gpu" else 0)


@lru_cache(maxsize=512)
def _simulate(job: Job, stage: int, chunks: tuple[Chunk, ...]) -> Peaks:
    tape = Tape(keeps_gradients=frees_gradients(job), buckets=_buckets(job, stage))
    network, meter = Network(job, tape), tape.meter
    pending: dict[int, deque[tuple[Value, Leaf | None]]] = {number: deque() for number in range(len(chunks))}
    found = dict.fromkeys((FORWARD, HEAD, BACKWARD, "kept"), 0)

    def note(name: str) -> None:
        found[name] = max(found[name], meter.peak)
        meter.reset()

    for kind, number in steps_of(stage, job):
        chunk = chunks[number]
        meter.reset()
        if kind == FORWARD:
            received = None if chunk.has_embedding else network.receive()
            x: Value = network.embed() if received is None else received
            for layer in chunk.layers:
                x = network.layer(layer, x)
            note(FORWARD)
            if chunk.has_norm or chunk.has_head:
                found["kept"] = max(found["kept"], meter.now)
                x = network.head(x)
                note(HEAD)
            pending[number].append((x, received))
            del x, received
            continue
        output, received = pending[number].popleft()
        gradient = loss_gradient(tape) if chunk.has_head else tape.new(output.size)
        tape.backward(output, gradient)
        tape.send_all()
        del gradient, output
        note(BACKWARD)
        del received
    return Peaks(found[FORWARD], found[HEAD], found[BACKWARD], found["kept"])
