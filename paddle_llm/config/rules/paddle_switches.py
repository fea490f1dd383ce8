"""Rules about Paddle's switches in the *_parallel_config fields: they exist, have an effect, and can be combined."""

from __future__ import annotations

import difflib

from paddle_llm.config.paddle_switches import SWITCHES, active_switches, buckets_are_used, idle_switches
from paddle_llm.config.rules.engine import Findings, Notice, Problem, Rule, Run


def switches_exist(run: Run) -> Findings:
    """All switches are known."""
    for name, known in SWITCHES.items():
        for word in getattr(run.config, name).split():
            if word not in known:
                close = difflib.get_close_matches(word, known, 1)
                hint = f"Did you mean {close[0]}?" if close else f"Use {', '.join(known)}."
                yield Problem(f"{name} = {word} is unknown. {hint}")


def switches_have_an_effect(run: Run) -> Findings:
    """Report switches without effect in this layout."""
    for name, idle in idle_switches(run.config, run.layout).items():
        for why in dict.fromkeys(idle.values()):
            words = [word for word in idle if idle[word] == why]
            verb = "has" if len(words) == 1 else "have"
            yield Notice(f"{name}: {' and '.join(words)} {verb} no effect: {why}.")


def settings_of_switches_have_an_effect(run: Run) -> Findings:
    """Report settings that belong to switches without effect."""
    config, layout = run.config, run.layout
    if config.sharding_comm_buffer_size_MB > 0 and not buckets_are_used(config, layout, run.device):
        why = "nothing is sharded" if layout.sharding == 1 else "stage 1 sends parameters one by one in this run"
        yield Notice(f"--sharding_comm_buffer_size_MB has no effect: {why}.")
    if config.hybrid_parallel_topo_order != "pp_first" and 1 in (layout.pipeline, layout.sharding):
        yield Notice(
            f"--hybrid_parallel_topo_order {config.hybrid_parallel_topo_order} has no effect: it orders pipeline stages and "
            f"sharding ranks, and this layout has pp{layout.pipeline} x sharding{layout.sharding}."
        )


def pipeline_switches(run: Run) -> Findings:
    """Switches of the pipeline are supported and can be combined."""
    config, layout = run.config, run.layout
    for word in ("best_unbalanced_scheduler", "use_dualpipev"):
        if word in config.pipeline_parallel_config.split():
            yield Problem(
                f"pipeline_parallel_config = {word} is not supported: the schedules are 1F1B and interleaved. Drop it."
            )
    words = active_switches(config, layout)["pipeline_parallel_config"].split()
    if "enable_dp_comm_overlap" in words:
        yield Problem("pipeline_parallel_config = enable_dp_comm_overlap gives wrong gradients in Paddle. Drop it.")
    if "enable_sharding_comm_overlap" in words and run.device == "gpu":
        if not config.amp_master_grad:
            yield Problem(
                "pipeline_parallel_config = enable_sharding_comm_overlap needs amp_master_grad. Add --amp_master_grad."
            )
        if layout.data > 1:
            yield Problem(
                "pipeline_parallel_config = enable_sharding_comm_overlap cannot be combined with data parallelism in Paddle. "
                f"Drop it, or shard over all {layout.data_world_size} ranks "
                f"(--data_parallel_degree 1 --sharding_parallel_degree {layout.data_world_size})."
            )
    if layout.pipeline > 1 and config.sequence_parallel and "disable_partial_send_recv" not in words:
        yield Notice("--sequence_parallel with a pipeline: partial sends are turned off (disable_partial_send_recv).")


def sharding_switches(run: Run) -> Findings:
    """Switches of sharding have what they need and can be combined."""
    config = run.config
    words = active_switches(config, run.layout)["sharding_parallel_config"].split()
    if run.device != "gpu":
        return  # `adapt_to_cpu` drops and reports them
    if "split_param" in words and not config.amp_master_grad:
        yield Problem("sharding_parallel_config = split_param needs amp_master_grad. Add --amp_master_grad.")
    if "enable_stage1_broadcast_overlap" in words and "split_param" in words:
        yield Problem(
            "sharding_parallel_config: enable_stage1_broadcast_overlap cannot be combined with split_param. Drop one."
        )
    for word in ("enable_stage1_allgather_overlap", "enable_fuse_optimizer_states"):
        if word in words and "split_param" not in words:
            yield Problem(f"sharding_parallel_config = {word} needs split_param. Add split_param.")
    for word in ("enable_stage1_broadcast_overlap", "enable_stage1_allgather_overlap"):
        if word in words and config.logging_steps == 1:
            yield Problem(
                f"sharding_parallel_config = {word} needs logging_steps above 1, because logging waits for the step. Use 2 or more."
            )


RULES: list[Rule] = [
    switches_exist,
    switches_have_an_effect,
    settings_of_switches_have_an_effect,
    pipeline_switches,
    sharding_switches,
]
