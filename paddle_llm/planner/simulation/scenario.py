"""The input of a simulation: the mesh, the times of one step, and what disturbs them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from paddle_llm.planner.pipeline.events import Array, ChunkTimes


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One job on many ranks. Times are seconds.

    Attributes:
        schedule: Name of the pipeline schedule.
        pipeline: Number of pipeline ranks.
        virtual_stages: Chunks of the model per pipeline rank.
        micro_batches: Micro-batches of a step.
        replicas: Number of pipelines: data parallel x sharding degree. Each ends its step when all have ended.
        tensor: Ranks that split the matrices of a stage. They wait for each other in every layer.
        forward: Forward pass of one micro-batch, by pipeline rank.
        backward: Backward pass of one micro-batch, by pipeline rank, without `weight`.
        weight: Gradients of the weights in the zero-bubble schedule, by pipeline rank; 0 for the other schedules.
        transfer: Transfer of one micro-batch to the next pipeline rank.
        update: Reduction of gradients and optimizer step, after the pipelines.
        jitter: Standard deviation of the compute time of a rank in a step, as a share of its mean.
        link_jitter: The same for a link between pipeline ranks.
        straggler_share: Probability that a rank is slow in a step.
        slowdown: Factor on the times of such a rank.
        slow_ranks: Factor on the times of ranks that are slow in every step.
    """

    schedule: str
    pipeline: int
    virtual_stages: int
    micro_batches: int
    replicas: int
    tensor: int
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    weight: tuple[float, ...]
    transfer: float
    update: float
    jitter: float = 0.0
    link_jitter: float = 0.0
    straggler_share: float = 0.0
    slowdown: float = 1.0
    slow_ranks: dict[int, float] = field(default_factory=dict)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.pipeline * self.replicas * self.tensor

    def chunk_times(self, factors: Array | None = None, link_factors: Array | None = None) -> ChunkTimes:
        """Return the times of the chunks of the model.

        Args:
            factors: Factor on the compute times of each pipeline rank: [pipeline, ...]; 1 by default.
            link_factors: Factor on the transfers from each pipeline rank to the next: [pipeline, ...]; 1 by default.
        """
        compute = np.ones(self.pipeline) if factors is None else factors
        links = np.ones(self.pipeline) if link_factors is None else link_factors
        axes = (slice(None), *(None,) * (compute.ndim - 1))

        def of_chunks(seconds: tuple[float, ...]) -> Array:
            by_rank = np.asarray(seconds)[axes] * compute / self.virtual_stages
            return np.concatenate([by_rank] * self.virtual_stages)

        transfer = np.concatenate([links * self.transfer] * self.virtual_stages)[:-1]
        return ChunkTimes(of_chunks(self.forward), of_chunks(self.backward), of_chunks(self.weight), transfer)
