"""Fields for the device and the layout of the ranks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paddle_llm.config.fields.base import Group


class ParallelFields(Group):
    """Parallel layout"""

    device: str | None = Field(None, description="gpu or cpu. Unset: gpu if available; reported at the start.")
    cpu_threads: int | None = Field(
        None,
        ge=1,
        description="Compute threads per rank (CPU). Unset: cores divided by ranks on this machine.",
    )
    tensor_parallel_degree: int = Field(1, ge=-1, description="Number of ranks that split each matrix. -1 means 1.")
    pipeline_parallel_degree: int = Field(1, ge=-1, description="Number of pipeline stages. -1 means 1.")
    virtual_pp_degree: int = Field(1, ge=1, description="Model chunks per stage (interleaved schedule).")
    sharding: str = Field(
        "",
        description="What data-parallel ranks shard instead of replicating. stage1: optimizer states; stage2: also gradients; "
        "stage3: also weights (not with a pipeline). `stage2 offload`, `stage3 offload`: keep optimizer states, and with stage3 "
        "weights, in host memory (GPU).",
    )
    sharding_parallel_degree: int = Field(
        -1,
        ge=-1,
        description="Number of ranks that shard. -1: with --sharding all ranks that the other degrees do not use, else 1.",
    )
    data_parallel_degree: int = Field(
        -1, ge=-1, description="Number of replicas. -1: all ranks that the other degrees do not use."
    )
    sequence_parallel: bool = Field(
        False, description="With tensor parallelism: split activations along the sequence (LLaMA, ChatGLM2/3)."
    )
    fuse_sequence_parallel_allreduce: bool = Field(
        False, description="Fuse the gradient reductions of --sequence_parallel."
    )
    tensor_parallel_config: str = Field(
        "", description="Paddle's switches for tensor parallelism, separated by spaces."
    )
    pipeline_parallel_config: str = Field("", description="Paddle's switches for the pipeline, separated by spaces.")
    sharding_parallel_config: str = Field("", description="Paddle's switches for sharding, separated by spaces.")
    sharding_comm_buffer_size_MB: int = Field(
        -1,
        ge=-1,
        description="Size in MB of the gradient buckets of stages 2 and 3, and of stage 1 with a fusing switch. -1: the size of 16 "
        "average matrices, from 32 to 2048; for stage 1 Paddle's default.",
    )
    hybrid_parallel_topo_order: Literal["pp_first", "sharding_first"] = Field(
        "pp_first",
        description="Order of the ranks. pp_first: data, pipeline, sharding, tensor, from outermost to innermost.",
    )
    release_grads: bool = Field(False, description="Free the memory of gradients after each step.")
    offload_optim: bool = Field(False, description="Move optimizer states to host memory between steps (GPU).")
