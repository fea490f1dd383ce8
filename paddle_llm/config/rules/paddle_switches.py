"""Rules about Paddle's switches in the *_parallel_config fields: words that exist, do something, and go together."""

from __future__ import annotations

import difflib

from paddle_llm.config.paddle_switches import WORDS, buckets_are_used, idle_words, words_at_work
from paddle_llm.config.rules.engine import Findings, Notice, Problem, Rule, Run


def words_exist(run: Run) -> Findings:
    for name, known in WORDS.items():
        for word in getattr(run.config, name).split():
            if word not in known:
                close = difflib.get_close_matches(word, known, 1)
                hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(known)}."
                yield Problem(f"{name}: {word} is unknown. {hint}")


def words_have_an_effect(run: Run) -> Findings:
    for name, idle in idle_words(run.config, run.layout).items():
        for why in dict.fromkeys(idle.values()):
            words = [word for word in idle if idle[word] == why]
            verb = "has" if len(words) == 1 else "have"
            yield Notice(f"{name}: {' and '.join(words)} {verb} no effect: {why}.")


def settings_of_words_have_an_effect(run: Run) -> Findings:
    config, layout = run.config, run.layout
    if config.sharding_comm_buffer_size_MB > 0 and not buckets_are_used(config, layout, run.device):
        why = "nothing is sharded" if layout.sharding == 1 else "stage 1 sends each parameter on its own in this run"
        yield Notice(f"--sharding_comm_buffer_size_MB has no effect: {why}.")
    if config.hybrid_parallel_topo_order != "pp_first" and 1 in (layout.pipeline, layout.sharding):
        yield Notice(
            f"--hybrid_parallel_topo_order {config.hybrid_parallel_topo_order} has no effect: it orders pipeline stages and "
            f"sharding ranks, and there are pp{layout.pipeline} x sharding{layout.sharding}."
        )


def pipeline_words(run: Run) -> Findings:
    config, layout = run.config, run.layout
    for word in ("best_unbalanced_scheduler", "use_dualpipev"):
        if word in config.pipeline_parallel_config.split():
            yield Problem(f"pipeline_parallel_config: {word} is not offered: the schedules are 1F1B and interleaved.")
    words = words_at_work(config, layout)["pipeline_parallel_config"].split()
    if "enable_dp_comm_overlap" in words:
        yield Problem("pipeline_parallel_config: enable_dp_comm_overlap gives wrong gradients in Paddle: leave it out.")
    if "enable_sharding_comm_overlap" in words and run.device == "gpu":
        if not config.amp_master_grad:
            yield Problem("pipeline_parallel_config: enable_sharding_comm_overlap needs --amp_master_grad.")
        if layout.data > 1:
            yield Problem(
                "pipeline_parallel_config: Paddle cannot overlap sharding's reductions beside data parallelism: leave out "
                f"enable_sharding_comm_overlap, or shard over all {layout.data_world_size} ranks "
                f"(--data_parallel_degree 1 --sharding_parallel_degree {layout.data_world_size})."
            )
    if layout.pipeline > 1 and config.sequence_parallel and "disable_partial_send_recv" not in words:
        yield Notice("--sequence_parallel with a pipeline: partial sends are switched off (disable_partial_send_recv).")


def sharding_words(run: Run) -> Findings:
    config = run.config
    words = words_at_work(config, run.layout)["sharding_parallel_config"].split()
    if run.device != "gpu":
        return  # they are left out, and said
    if "split_param" in words and not config.amp_master_grad:
        yield Problem("sharding_parallel_config: split_param needs --amp_master_grad.")
    if "enable_stage1_broadcast_overlap" in words and "split_param" in words:
        yield Problem("sharding_parallel_config: enable_stage1_broadcast_overlap does not go with split_param.")
    for word in ("enable_stage1_allgather_overlap", "enable_fuse_optimizer_states"):
        if word in words and "split_param" not in words:
            yield Problem(f"sharding_parallel_config: {word} needs split_param.")
    for word in ("enable_stage1_broadcast_overlap", "enable_stage1_allgather_overlap"):
        if word in words and config.logging_steps == 1:
            yield Problem(
                f"sharding_parallel_config: {word} needs logging_steps above 1 (logging waits for every step)."
            )


RULES: list[Rule] = [
    words_exist,
    words_have_an_effect,
    settings_of_words_have_an_effect,
    pipeline_words,
    sharding_words,
]
