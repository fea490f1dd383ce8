"""The layout of a job: how its ranks are divided into data, sharding, tensor and pipeline parallelism."""

from __future__ import annotations

from dataclasses import dataclass, field

from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.counts import counted

_RANKS_PER_MACHINE = 8


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism of one job; their product is the world size.

    Attributes:
        data: Replicas that read different data and all-reduce gradients.
        sharding: Ranks that read different data and shard optimizer states (ZeRO).
        tensor: Ranks that split every matrix (tensor parallel).
        pipeline: Stages.
        sharding_stage: 0 (none), 1, 2 or 3.
        virtual_stages: Model chunks per pipeline rank; 1 for the 1F1B schedule without interleaving.
        sequence_parallel: Whether activations between tensor-parallel blocks are split along the sequence.
    """

    data: int = 1
    sharding: int = 1
    tensor: int = 1
    pipeline: int = 1
    sharding_stage: int = 0
    virtual_stages: int = 1
    sequence_parallel: bool = False

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.data * self.sharding * self.tensor * self.pipeline

    @property
    def data_world_size(self) -> int:
        """Number of ranks that read different samples."""
        return self.data * self.sharding

    def __str__(self) -> str:
        parts = []
        if self.data > 1:
            parts.append(f"dp{self.data}")
        if self.sharding > 1:
            parts.append(f"sharding{self.sharding}(stage{self.sharding_stage})")
        if self.tensor > 1:
            parts.append(f"tp{self.tensor}" + ("+sp" if self.sequence_parallel else ""))
        if self.pipeline > 1:
            parts.append(f"pp{self.pipeline}" + (f"v{self.virtual_stages}" if self.virtual_stages > 1 else ""))
        return " x ".join(parts) or "one process"


@dataclass
class LayoutResult:
    """Layout that a config requests, or the reasons why it is not possible.

    Attributes:
        layout: Layout; None if there are problems.
        problems: Messages about mistakes.
        notices: Messages that do not stop the run.
    """

    layout: Layout | None = None
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def layout_of(config: RunConfig, world_size: int, entry: str = "pretrain") -> LayoutResult:
    """Divide the ranks of a job as `config` requests. Degrees of data and sharding that are -1 are derived.

    Args:
        config: Config with the degrees.
        world_size: Number of ranks of the job.
        entry: "pretrain" or "finetune", for the command in a message.
    """
    result = LayoutResult()
    zero = [name for name in _DEGREES if getattr(config, name) == 0]
    if zero:
        result.problems += [f"{name} = 0 is not a degree. Use 1 or more, or -1 for the default." for name in zero]
        return result
    tensor, pipeline = max(config.tensor_parallel_degree, 1), max(config.pipeline_parallel_degree, 1)
    sharding, data = config.sharding_parallel_degree, config.data_parallel_degree
    if sharding > 1 and not config.sharding_stage:
        result.problems.append(
            f"sharding_parallel_degree = {sharding} without --sharding: nothing would be sharded and gradients would not be "
            f"averaged. Add --sharding stage1, or use --data_parallel_degree {sharding}."
        )
        return result
    fixed = tensor * pipeline * max(sharding, 1) * max(data, 1)
    requested = _describe(tensor=tensor, pipeline=pipeline, sharding=sharding, data=data)
    if world_size == 1 and fixed > 1:
        result.problems.append(
            f"{requested} needs {fixed} processes, but only one was started. Start the job with "
            f"paddle-llm {entry} CONFIG.json {process_options(fixed)}"
        )
    elif world_size % fixed:
        verb = "is more than" if fixed > world_size else "does not divide"
        result.problems.append(
            f"{requested} = {fixed} ranks {verb} the {world_size} ranks of the job. Start the job on {_nearest_world_sizes(fixed, world_size)} "
            "ranks, or change a degree."
        )
    else:
        _assign_remaining_ranks(
            result, config, world_size // fixed, (tensor, pipeline, sharding, data), requested, world_size
        )
    return result


_DEGREES = ("tensor_parallel_degree", "pipeline_parallel_degree", "sharding_parallel_degree", "data_parallel_degree")


def process_options(count: int) -> str:
    """Return the options of `paddle-llm pretrain` that start `count` processes, at most eight on a machine."""
    if count <= _RANKS_PER_MACHINE:
        return f"--nproc_per_node {count}"
    ranks = next(ranks for ranks in range(_RANKS_PER_MACHINE, 0, -1) if count % ranks == 0)
    machines = count // ranks
    return f"--nproc_per_node {ranks} --nnodes {machines} --master HOST:PORT (the same command on each of {machines} machines)"


def _assign_remaining_ranks(
    result: LayoutResult,
    config: RunConfig,
    rest: int,
    degrees: tuple[int, int, int, int],
    requested: str,
    world_size: int,
) -> None:
    """Assign the ranks that no given degree uses to sharding, or else to data.

    Args:
        result: Result that gets the layout or a problem.
        config: Config with the degrees.
        rest: Number of ranks divided by the product of the given degrees.
        degrees: Degrees of tensor, pipeline, sharding and data; -1 for one to derive.
        requested: Given degrees as text, for messages.
        world_size: Number of ranks of the job.
    """
    tensor, pipeline, sharding, data = degrees
    if config.sharding_stage and sharding == -1:
        sharding, rest = rest, 1
    if data == -1:
        data, rest = rest, 1
    if rest > 1:
        used = world_size // rest
        start = counted(used, "rank")
        product = f"{requested} = {start}" if used > 1 else "data_parallel_degree 1 uses one rank"
        result.problems.append(
            f"{product}, but the job has {world_size}: {world_size - used} would be idle. Start the job on {start}, drop "
            "--data_parallel_degree, or increase a degree."
        )
        return
    stage = config.sharding_stage if sharding > 1 else 0
    if config.sharding_stage and not stage:
        where = (
            "one process" if world_size == 1 else f"this layout (tensor {tensor} x pipeline {pipeline} x data {data})"
        )
        result.notices.append(
            f"--sharding {config.sharding} has no effect: {where} has no ranks to shard over. Each rank keeps the complete state."
        )
    result.layout = Layout(
        data=max(data, 1),
        sharding=max(sharding, 1),
        tensor=tensor,
        pipeline=pipeline,
        sharding_stage=stage,
        virtual_stages=config.virtual_pp_degree,
        sequence_parallel=config.sequence_parallel,
    )


def _describe(**degrees: int) -> str:
    """Return the degrees above one, such as `tensor_parallel_degree 2 x pipeline_parallel_degree 2`."""
    parts = [f"{name}_parallel_degree {degree}" for name, degree in degrees.items() if degree > 1]
    return " x ".join(parts) or "one rank"


def _nearest_world_sizes(fixed: int, world_size: int) -> str:
    """Return the multiples of `fixed` next to the world size, as text."""
    below, above = world_size // fixed * fixed, (world_size // fixed + 1) * fixed
    return f"{below} or {above}" if below else str(above)
