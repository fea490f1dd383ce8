"""Rules about what may be combined in a layout."""

from __future__ import annotations

from paddle_llm.config.rules.core import Notice, Problem, Rule, Run
from paddle_llm.config.rules.settings import Findings

_SHARDING_WORDS = ("stage1", "stage2", "stage3", "offload")


def sharding_stages(run: Run) -> Findings:
    words = run.config.sharding.split()
    unknown = [word for word in words if word not in _SHARDING_WORDS]
    stages = [word for word in words if word.startswith("stage") and word not in unknown]
    if unknown:
        yield Problem(
            f"sharding = {run.config.sharding}: {unknown[0]} is unknown; there are stage1, stage2 and stage3."
        )
    elif len(stages) > 1:
        yield Problem(f"sharding = {run.config.sharding}: give one stage.")
    elif "offload" in words:
        yield Problem(
            f"sharding = {run.config.sharding}: offload is not offered in this version. Nearest: --offload_optim, which "
            "keeps optimizer states in host memory between steps."
        )


def sharded_weights(run: Run) -> Findings:
    if run.layout.sharding_stage == 3:
        yield Problem(
            "sharding stage3 is not offered in this version. Nearest: --sharding stage2, which goes with tensor and pipeline "
            "parallelism and keeps the weights whole."
        )


_STAGE1_WORDS = ("split_param", "enable_stage1_tensor_fusion", "enable_stage1_overlap")


def sharded_gradients(run: Run) -> Findings:
    words = [word for word in run.config.sharding_parallel_config.split() if word in _STAGE1_WORDS]
    if run.layout.sharding_stage == 2 and words and run.device == "gpu":
        yield Problem(
            f"sharding_parallel_config: {' and '.join(words)} lay gradients out for stage 1. Leave them out, or use --sharding stage1."
        )
    overlap = "enable_sharding_comm_overlap" in run.config.pipeline_parallel_config.split()
    if run.layout.sharding_stage == 2 and run.layout.pipeline > 1 and overlap and run.device == "gpu":
        yield Problem(
            "pipeline_parallel_config: enable_sharding_comm_overlap lays gradients out for stage 1. Leave it out, or use --sharding stage1."
        )


def virtual_stages(run: Run) -> Findings:
    config, layout = run.config, run.layout
    virtual, stages = layout.virtual_stages, layout.pipeline
    if virtual == 1:
        return
    if stages == 1:
        yield Problem(f"virtual_pp_degree = {virtual} needs a pipeline: pipeline_parallel_degree is 1.")
        return
    if stages <= 2:
        yield Problem(f"virtual_pp_degree = {virtual} needs more than 2 stages: pipeline_parallel_degree is {stages}.")
    if config.gradient_accumulation_steps < 2 * stages:
        yield Problem(
            f"virtual_pp_degree = {virtual} needs at least 2 x {stages} micro batches: "
            f"gradient_accumulation_steps is {config.gradient_accumulation_steps}, give {2 * stages} or more."
        )


def pipeline_bubble(run: Run) -> Findings:
    stages, micro_batches = run.layout.pipeline, run.config.gradient_accumulation_steps
    if stages > 1 and micro_batches < 2 * stages:
        # 1F1B with p stages and m micro batches idles (p - 1) / (m + p - 1) of its time.
        idle = (stages - 1) / (run.layout.virtual_stages * micro_batches + stages - 1)
        yield Notice(
            f"{stages} pipeline stages with {micro_batches} micro batches idle {idle:.0%} of the time: "
            "more --gradient_accumulation_steps leave less of it."
        )


def evaluation_batch_with_pipeline(run: Run) -> Findings:
    config = run.config
    fixed = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if run.layout.pipeline > 1 and (config.do_eval or config.do_predict) and config.per_device_eval_batch_size != fixed:
        yield Notice(
            f"per_device_eval_batch_size is {fixed} with a pipeline: evaluation takes the {config.gradient_accumulation_steps} "
            f"micro batches of {config.per_device_train_batch_size} that training takes."
        )


def sequence_parallel(run: Run) -> Findings:
    config, layout = run.config, run.layout
    if not config.sequence_parallel:
        if config.fuse_sequence_parallel_allreduce:
            yield Notice("--fuse_sequence_parallel_allreduce has no effect without --sequence_parallel.")
        return
    if layout.tensor == 1:
        yield Problem(
            "sequence_parallel needs tensor_parallel_degree above 1: there are no ranks to split the sequence over."
        )
    elif config.max_seq_length % layout.tensor:
        yield Problem(
            f"sequence_parallel: max_seq_length = {config.max_seq_length} is not divisible by "
            f"tensor_parallel_degree = {layout.tensor}."
        )


def optimizer_variants(run: Run) -> Findings:
    config, layout = run.config, run.layout
    if config.optim == "adamw_mini" and layout.tensor > 1:
        yield Problem("optim = adamw_mini cannot split its states over tensor parallel ranks: use adamw.")
    elif config.optim != "adamw" and layout.world_size > 1:
        yield Notice(f"--optim {config.optim}: layouts are proven equal to one process with adamw only.")


RULES: list[Rule] = [
    sharding_stages,
    sharded_weights,
    sharded_gradients,
    virtual_stages,
    pipeline_bubble,
    evaluation_batch_with_pipeline,
    sequence_parallel,
    optimizer_variants,
]
