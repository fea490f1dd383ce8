"""Fields that say how the job is divided over ranks, and on which device."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paddle_llm.config.fields.base import Group


class ParallelFields(Group):
    """Parallel layout"""

    device: str | None = Field(None, description="gpu or cpu. Absent: the best there is, and the start says which.")
    cpu_threads: int | None = Field(
        None,
        ge=1,
        description="CPU only: compute threads per rank. Absent: the cores divided by the ranks on this machine.",
    )
    tensor_parallel_degree: int = Field(1, ge=-1, description="Ranks that split every matrix. -1 is read as 1.")
    pipeline_parallel_degree: int = Field(1, ge=-1, description="Pipeline stages. -1 is read as 1.")
    virtual_pp_degree: int = Field(1, ge=1, description="Model chunks per stage (interleaved schedule).")
    sharding: str = Field(
        "",
        description="What data-parallel ranks share instead of copying. stage1: optimizer states, stage2: gradients too, "
        "stage3: weights too (not with a pipeline). `stage2 offload`, `stage3 offload`: optimizer states, and with stage3 "
        "weights, wait in host memory (GPU).",
    )
    sharding_parallel_degree: int = Field(
        -1, ge=-1, description="Ranks that share. -1: with --sharding all that tensor, pipeline and data leave, else 1."
    )
    data_parallel_degree: int = Field(
        -1, ge=-1, description="Plain replicas. -1: what the other degrees leave of the launch."
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
        description="MB of gradients that stages 2 and 3 reduce at one time, in buckets; size of a bucket of stage 1 with its "
        "fusing words. -1: what 16 matrices of average size need, from 32 to 2048; for stage 1 Paddle's own.",
    )
    hybrid_parallel_topo_order: Literal["pp_first", "sharding_first"] = Field(
        "pp_first",
        description="Which ranks are neighbours: pp_first is data, pipeline, sharding, tensor from far to near.",
    )
    release_grads: bool = Field(False, description="Free gradients after each step instead of keeping their memory.")
    offload_optim: bool = Field(False, description="Move optimizer states to host memory between steps (GPU).")
