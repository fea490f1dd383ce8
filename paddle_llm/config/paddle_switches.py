"""Paddle's switches in the *_parallel_config fields, and which of them have no effect in a layout.

PaddleNLP reads a field only if its degree is above 1, so that a misspelled switch fails only once the job grows, and it accepts
some switches silently although they have no effect. Here a switch is unknown, active or idle; idle ones are reported with the
reason.
Sources: paddlenlp 3.0.0b4 `trainer/training_args.py`; paddle 3.3.1 `fleet/meta_optimizers/dygraph_optimizer` and
`fleet/meta_parallel/pipeline_parallel.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig

TENSOR_SWITCHES = (
    "enable_mp_async_allreduce",
    "enable_mp_skip_c_identity",
    "enable_mp_fused_linear_param_grad_add",
    "enable_sp_async_reduce_scatter",
    "enable_delay_scale_loss",
    "sync_param",
    "sync_grad",
    "sync_moment",
)
PIPELINE_SWITCHES = (
    "disable_p2p_cache_shape",
    "disable_partial_send_recv",
    "enable_delay_scale_loss",
    "enable_dp_comm_overlap",
    "enable_sharding_comm_overlap",
    "enable_timer",
    "enable_release_grads",
    "enable_clear_every_step_cache",
    "enable_overlap_p2p_comm",
    "disable_batch_p2p_comm",
    "best_unbalanced_scheduler",
    "use_dualpipev",
)
SHARDING_SWITCHES = (
    "enable_stage1_tensor_fusion",
    "enable_stage1_overlap",
    "enable_stage2_overlap",
    "split_param",
    "disable_stage1_reduce_avg",
    "enable_stage1_broadcast_overlap",
    "enable_stage1_allgather_overlap",
    "enable_release_grads",
    "enable_fuse_optimizer_states",
)
SWITCHES = {
    "tensor_parallel_config": TENSOR_SWITCHES,
    "pipeline_parallel_config": PIPELINE_SWITCHES,
    "sharding_parallel_config": SHARDING_SWITCHES,
}
# Memory layout and communication of stage 1. Stages 2 and 3 have their own.
_STAGE_1_ONLY = (
    "enable_stage1_tensor_fusion",
    "enable_stage1_overlap",
    "split_param",
    "disable_stage1_reduce_avg",
    "enable_stage1_broadcast_overlap",
    "enable_stage1_allgather_overlap",
    "enable_fuse_optimizer_states",
)
_FUSING = ("enable_stage1_tensor_fusion", "enable_stage1_overlap")
_NEED_ASYNC_ALLREDUCE = ("enable_mp_skip_c_identity", "enable_mp_fused_linear_param_grad_add")


def idle_switches(config: RunConfig, layout: Layout) -> dict[str, dict[str, str]]:
    """Return the switches without effect in this layout.

    Returns:
        Reason by switch by field. Active and unknown switches are absent.
    """
    found: dict[str, dict[str, str]] = {}
    for name, known in SWITCHES.items():
        words = [word for word in getattr(config, name).split() if word in known]
        degree = name.removesuffix("_parallel_config")
        if getattr(layout, degree) == 1:
            found[name] = dict.fromkeys(words, f"{degree}_parallel_degree is 1")
        else:
            found[name] = dict(_IDLE[name](words, config, layout))
    return found


def active_switches(config: RunConfig, layout: Layout) -> dict[str, str]:
    """Return the text of each field without idle switches."""
    idle = idle_switches(config, layout)
    return {
        name: " ".join(word for word in getattr(config, name).split() if word not in idle[name]) for name in SWITCHES
    }


def buckets_are_used(config: RunConfig, layout: Layout, device: str) -> bool:
    """Return whether `sharding_comm_buffer_size_MB` has an effect.

    Stages 2 and 3 reduce gradients in buckets; Paddle's stage 1 does so with the fusing switches, on a GPU only.
    """
    if layout.sharding == 1:
        return False
    words = active_switches(config, layout)["sharding_parallel_config"].split()
    return layout.sharding_stage >= 2 or (device == "gpu" and bool({"split_param", *_FUSING} & set(words)))


def _idle_tensor(words: list[str], config: RunConfig, layout: Layout) -> Iterator[tuple[str, str]]:
    for word in words:
        if word in _NEED_ASYNC_ALLREDUCE and "enable_mp_async_allreduce" not in words:
            yield word, "it needs enable_mp_async_allreduce"
        elif word == "enable_sp_async_reduce_scatter" and not config.sequence_parallel:
            yield word, "it needs --sequence_parallel"
        elif word == "enable_delay_scale_loss" and layout.pipeline > 1:
            yield word, "with a pipeline it belongs in --pipeline_parallel_config"
        elif word == "enable_delay_scale_loss" and config.gradient_accumulation_steps == 1:
            yield word, "gradient_accumulation_steps is 1"


def _idle_pipeline(words: list[str], config: RunConfig, layout: Layout) -> Iterator[tuple[str, str]]:
    for word in words:
        if word == "enable_dp_comm_overlap" and layout.data == 1:
            yield word, "data_parallel_degree is 1"
        elif word == "enable_sharding_comm_overlap" and layout.sharding == 1:
            yield word, "sharding_parallel_degree is 1"
        elif word == "enable_sharding_comm_overlap" and layout.sharding_stage >= 2:
            yield (
                word,
                f"it is for stage 1; --sharding stage{layout.sharding_stage} reduces gradients in its own buckets",
            )
        elif word == "disable_partial_send_recv" and layout.tensor == 1:
            yield word, "tensor_parallel_degree is 1"
        elif word == "enable_overlap_p2p_comm" and layout.virtual_stages == 1:
            yield word, "it needs virtual_pp_degree above 1"
        elif word == "enable_delay_scale_loss" and config.gradient_accumulation_steps == 1:
            yield word, "gradient_accumulation_steps is 1"


def _idle_sharding(words: list[str], config: RunConfig, layout: Layout) -> Iterator[tuple[str, str]]:
    stage = layout.sharding_stage
    for word in words:
        if word in _STAGE_1_ONLY and stage >= 2:
            yield word, f"it is for stage 1; --sharding stage{stage} reduces gradients in its own buckets"
        elif word == "enable_stage2_overlap" and stage == 1:
            yield word, "it is for stage 2"
        elif word == "enable_stage2_overlap":
            yield word, "reductions overlap with the backward pass if the device supports it"
        elif word in _FUSING and layout.pipeline > 1:
            yield word, "with a pipeline the switch is enable_sharding_comm_overlap in --pipeline_parallel_config"


_IDLE = {
    "tensor_parallel_config": _idle_tensor,
    "pipeline_parallel_config": _idle_pipeline,
    "sharding_parallel_config": _idle_sharding,
}
