"""Paddle's switches in the *_parallel_config fields: which words there are, and what each needs.

PaddleNLP looks at them only when the degree is above 1, so that a misspelt word lies in wait until the job grows.
"""

from __future__ import annotations

import difflib

from paddle_llm.config.rules.core import Notice, Problem, Rule, Run
from paddle_llm.config.rules.settings import Findings

TENSOR_WORDS = (
    "enable_mp_async_allreduce",
    "enable_mp_skip_c_identity",
    "enable_mp_fused_linear_param_grad_add",
    "enable_sp_async_reduce_scatter",
    "enable_delay_scale_loss",
    "sync_param",
    "sync_grad",
    "sync_moment",
)
PIPELINE_WORDS = (
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
SHARDING_WORDS = (
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
_WORDS = {
    "tensor_parallel_config": TENSOR_WORDS,
    "pipeline_parallel_config": PIPELINE_WORDS,
    "sharding_parallel_config": SHARDING_WORDS,
}


def words_exist(run: Run) -> Findings:
    for name, known in _WORDS.items():
        for word in getattr(run.config, name).split():
            if word not in known:
                close = difflib.get_close_matches(word, known, 1)
                hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(known)}."
                yield Problem(f"{name}: {word} is unknown. {hint}")


def words_have_an_effect(run: Run) -> Findings:
    layout = run.layout
    for name, degree in (
        ("tensor_parallel_config", layout.tensor),
        ("pipeline_parallel_config", layout.pipeline),
        ("sharding_parallel_config", layout.sharding),
    ):
        if degree == 1 and getattr(run.config, name).split():
            yield Notice(f"--{name} has no effect: {name.replace('config', 'degree')} is 1.")


def tensor_words(run: Run) -> Findings:
    words = run.config.tensor_parallel_config.split()
    if "enable_mp_async_allreduce" not in words:
        for word in ("enable_mp_skip_c_identity", "enable_mp_fused_linear_param_grad_add"):
            if word in words:
                yield Notice(f"tensor_parallel_config: {word} has no effect without enable_mp_async_allreduce.")
    if "enable_sp_async_reduce_scatter" in words and not run.config.sequence_parallel:
        yield Notice(
            "tensor_parallel_config: enable_sp_async_reduce_scatter has no effect without --sequence_parallel."
        )


def pipeline_words(run: Run) -> Findings:
    config, layout = run.config, run.layout
    words = config.pipeline_parallel_config.split()
    for word in ("best_unbalanced_scheduler", "use_dualpipev"):
        if word in words:
            yield Problem(f"pipeline_parallel_config: {word} is not offered: the schedules are 1F1B and interleaved.")
    if layout.pipeline == 1:
        return
    if "enable_dp_comm_overlap" in words and layout.data > 1:
        yield Problem("pipeline_parallel_config: enable_dp_comm_overlap gives wrong gradients in Paddle: leave it out.")
    if "enable_sharding_comm_overlap" in words and layout.sharding > 1 and not config.amp_master_grad:
        yield Problem("pipeline_parallel_config: enable_sharding_comm_overlap needs --amp_master_grad.")
    if config.sequence_parallel and "disable_partial_send_recv" not in words:
        yield Notice("--sequence_parallel with a pipeline: partial sends are switched off (disable_partial_send_recv).")


def sharding_words(run: Run) -> Findings:
    config, layout = run.config, run.layout
    words = config.sharding_parallel_config.split()
    if layout.sharding == 1:
        return
    if "split_param" in words and not config.amp_master_grad and run.device == "gpu":
        yield Problem("sharding_parallel_config: split_param needs --amp_master_grad.")
    if "enable_stage1_broadcast_overlap" in words and "split_param" in words and run.device == "gpu":
        yield Problem("sharding_parallel_config: enable_stage1_broadcast_overlap does not go with split_param.")
    if "enable_stage1_allgather_overlap" in words and "split_param" not in words and run.device == "gpu":
        yield Problem("sharding_parallel_config: enable_stage1_allgather_overlap needs split_param.")
    if "enable_stage2_overlap" in words:
        yield Notice("sharding_parallel_config: enable_stage2_overlap has no effect in this version.")
    if layout.sharding_stage == 2:
        for word in ("enable_stage1_broadcast_overlap", "enable_stage1_allgather_overlap"):
            if word in words:
                yield Notice(f"sharding_parallel_config: {word} has no effect with --sharding stage2.")
    if layout.pipeline > 1:
        for word in ("enable_stage1_tensor_fusion", "enable_stage1_overlap"):
            if word in words:
                yield Notice(
                    f"sharding_parallel_config: {word} has no effect with a pipeline; its switch is "
                    "enable_sharding_comm_overlap in --pipeline_parallel_config."
                )
    for word in ("enable_stage1_broadcast_overlap", "enable_stage1_allgather_overlap"):
        if word in words and config.logging_steps == 1:
            yield Problem(
                f"sharding_parallel_config: {word} needs logging_steps above 1 (logging waits for every step)."
            )


RULES: list[Rule] = [words_exist, words_have_an_effect, tensor_words, pipeline_words, sharding_words]
