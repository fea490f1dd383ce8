"""Memory of the ranks of a job: states of the optimizer, activations, communication, and their maximum over a step."""

from __future__ import annotations

from dataclasses import dataclass, fields

from paddle_llm.families import FAMILIES
from paddle_llm.planner.job import BYTES, Job
from paddle_llm.planner.memory.schedule import BACKWARD, FORWARD, HEAD, activation_peaks, frees_gradients
from paddle_llm.planner.shapes.owners import largest_first
from paddle_llm.planner.shapes.weights import RankWeight, layer_weights, weights_of_stage

UPDATE = "update"
_MIB = 2**20
# CUDA context, cuBLAS workspace and NCCL's buffers of one process.
_GPU_CONTEXT = 1024 * _MIB
# Share of the allocated memory that an allocator of 2 MiB blocks cannot use.
_SLACK = 0.02


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank at the moment of a step when it needs most.

    Attributes:
        stage: Pipeline stage.
        phase: Phase of the step.
        weights: Weights that the rank keeps.
        gathered: Weights that sharding stage 3 gathers for the layers that compute.
        gradients: Gradients that the rank keeps.
        master_weights: Copies in fp32.
        moments: Moments of AdamW.
        activations: Activations and transient gradients of layers, with gradients that are collected and reduced.
        logits: Head, logits and loss.
        buckets: Buffer in which plain data parallelism reduces all gradients.
        tables: Tables of rotary positions.
        framework: CUDA context, workspaces and communicators (GPU).
        slack: Memory that the allocator cannot use (GPU).
    """

    stage: int
    phase: str
    weights: int = 0
    gathered: int = 0
    gradients: int = 0
    master_weights: int = 0
    moments: int = 0
    activations: int = 0
    logits: int = 0
    buckets: int = 0
    tables: int = 0
    framework: int = 0
    slack: int = 0

    @property
    def total(self) -> int:
        """Sum of all components."""
        return sum(self.components.values())

    @property
    def components(self) -> dict[str, int]:
        """Bytes by component."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("stage", "phase")}


@dataclass(frozen=True)
class States:
    """Bytes of weights and optimizer states of the fullest rank of a stage."""

    weights: int
    gathered: int
    gradients: int
    owned_gradients: int
    master_weights: int
    moments: int


def plan_memory(job: Job) -> list[RankMemory]:
    """Return the memory of the fullest rank of each pipeline stage."""
    return [stage_memory(job, stage) for stage in range(job.layout.pipeline)]


def fullest_rank(job: Job) -> RankMemory:
    """Return the memory of the rank that needs most."""
    return max(plan_memory(job), key=lambda memory: memory.total)


def stage_memory(job: Job, stage: int) -> RankMemory:
    """Return the memory of the fullest rank of a pipeline stage."""
    states, peaks = states_of(job, stage), activation_peaks(job, stage)
    # Stage 3 frees the head's weights before the loss.
    gathered_in = {FORWARD: states.gathered, HEAD: 0, BACKWARD: states.gathered}
    found = peaks.by_phase()
    phase = max(found, key=lambda name: found[name] + gathered_in[name])
    most, gathered = found[phase], gathered_in[phase]
    gradients = states.gradients
    if frees_gradients(job):
        gradients = 0 if most > gradients else gradients
        phase, most = (phase, most) if gradients == 0 else (UPDATE, 0)
    logits = max(most - peaks.kept, 0) if phase == HEAD else 0
    on_gpu = job.kernels.device == "gpu"
    base = RankMemory(
        stage=stage,
        phase=phase,
        weights=states.weights,
        gathered=gathered,
        gradients=gradients,
        master_weights=0 if job.offload_optimizer else states.master_weights,
        moments=0 if job.offload_optimizer else states.moments,
        activations=most - logits,
        logits=logits,
        buckets=states.gradients if _reduces_in_one_buffer(job) else 0,
        tables=_tables(job, stage),
        framework=_GPU_CONTEXT if on_gpu else 0,
    )
    slack = int(_SLACK * (base.total - base.framework)) if on_gpu else 0
    return RankMemory(**{**vars(base), "slack": slack})


def _reduces_in_one_buffer(job: Job) -> bool:
    """Return whether Paddle's DataParallel copies all gradients to one buffer: only without any other parallelism."""
    layout = job.layout
    return layout.data > 1 and layout.world_size == layout.data


def states_of(job: Job, stage: int) -> States:
    """Return the states of the fullest rank of a stage."""
    weights, precision, layout = weights_of_stage(job, stage), job.precision, job.layout
    element, sharded = BYTES[precision.weights], layout.sharding > 1 and layout.sharding_stage >= 1
    total = sum(weight.size for weight in weights)
    trained = sum(weight.size for weight in weights if weight.trained)
    owned, owned_trained = (
        _largest_share(weights, layout.sharding, layout.sharding_stage) if sharded else (total, trained)
    )
    sharding_stage = layout.sharding_stage if sharded else 0
    gradient = BYTES[precision.gradients]
    return States(
        weights=element * (owned if sharding_stage == 3 else total),
        gathered=element * _largest_unit(job, stage) * (2 if job.kernels.device == "gpu" else 1)
        if sharding_stage == 3
        else 0,
        gradients=gradient * (owned_trained if sharding_stage >= 2 else trained),
        owned_gradients=gradient * owned_trained,
        master_weights=4 * owned_trained if precision.master_weights else 0,
        moments=2 * BYTES[precision.moments] * owned_trained,
    )


def _largest_share(weights: list[RankWeight], degree: int, stage: int) -> tuple[int, int]:
    """Return the elements, and the trained elements, of the sharding rank that owns most."""
    if stage == 1:
        owners = largest_first([weight.size for weight in weights], degree)
        trained = [0] * degree
        for weight, owner in zip(weights, owners, strict=True):
            trained[owner] += weight.size * weight.trained
        return sum(weight.size for weight in weights), max(trained)
    loads = {}
    for is_trained in (True, False):
        first = sum(weight.size for weight in weights if weight.tied and weight.trained) if is_trained else 0
        chosen = [
            weight.size for weight in weights if weight.trained == is_trained and not (weight.tied and is_trained)
        ]
        found = [first] + [0] * (degree - 1)
        for size, owner in zip(chosen, largest_first(chosen, degree, found), strict=True):
            found[owner] += size
        loads[is_trained] = found
    together = [one + other for one, other in zip(loads[True], loads[False], strict=True)]
    return max(together), max(loads[True])


def _largest_unit(job: Job, stage: int) -> int:
    """Return the elements of the largest unit that stage 3 gathers: a layer, the embedding or the head."""
    layer = sum(weight.size for weight in layer_weights(job, 0))
    others = [weight.size for weight in weights_of_stage(job, stage) if ".0." not in weight.name]
    return max(layer, *others)


def _tables(job: Job, stage: int) -> int:
    """Return the bytes of the tables of cosines and sines in fp32, which each layer of some families has."""
    program = FAMILIES[job.model.model_type].static_program
    if program.rotary_class is None:
        return 0
    layers = {weight.name.split(".")[2] for weight in weights_of_stage(job, stage) if program.norms[0] in weight.name}
    positions = job.model.max_position_embeddings or job.seq_length
    return 2 * 4 * positions * job.model.head_dim * len(layers)
