"""How a job's ranks are divided: data x sharding x tensor x pipeline."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism of one job; their product is the world size.

    Attributes:
        data: replicas that see different data and all-reduce gradients.
        sharding: ranks that see different data and share optimizer state (ZeRO).
        tensor: ranks that split every matrix (tensor parallel).
        pipeline: stages.
        sharding_stage: 0 (none), 1, 2 or 3.
        virtual_stages: model chunks per pipeline rank (1: plain 1F1B).
        sequence_parallel: activations between tensor-parallel blocks are split along the sequence.
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
