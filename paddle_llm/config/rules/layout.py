"""Rules about settings of the layout that depend on each other."""

from __future__ import annotations

import difflib
from dataclasses import replace

from paddle_llm.config.paddle_switches import active_switches
from paddle_llm.config.rules.engine import Findings, Notice, Problem, Rule, Run
from paddle_llm.core.counts import counted

_STAGES = ("stage1", "stage2", "stage3")


def sharding_stages(run: Run) -> Findings:
    """`sharding` names one stage, optionally followed by offload."""
    text = run.config.sharding
    words = text.split()
    unknown = [word for word in words if word not in (*_STAGES, "offload")]
    stages = [word for word in words if word in _STAGES]
    if unknown:
        close = difflib.get_close_matches(unknown[0], (*_STAGES, "offload"), 1)
        hint = f"Did you mean {close[0]}?" if close else "Use stage1, stage2 or stage3, optionally followed by offload."
        yield Problem(f"sharding = {text}: {unknown[0]} is unknown. {hint}")
    elif len(stages) > 1:
        yield Problem(f"sharding = {text} names several stages. Use one stage.")
    elif words and not stages:
        yield Problem(
            f"sharding = {text}: offload needs a stage. Use --sharding stage2 offload, or --offload_optim to keep optimizer "
            "states in host memory without sharding."
        )


def sharded_weights(run: Run) -> Findings:
    """Stage 3 has no pipeline; report the memory of 16-bit copies."""
    config, layout = run.config, run.layout
    if layout.sharding_stage != 3:
        return
    if layout.pipeline > 1:
        yield Problem(_stage_3_with_pipeline(run))
    if (config.bf16 or config.fp16) and config.fp16_opt_level != "O2" and not config.recompute:
        yield Notice(
            f"fp16_opt_level = {config.fp16_opt_level} with --sharding stage3: each layer keeps a 16-bit copy of its weights until "
            "its backward pass. Use --fp16_opt_level O2 or --recompute to avoid the copies."
        )


def _stage_3_with_pipeline(run: Run) -> str:
    """Return the message, with the two nearest layouts: stage 2 with the pipeline, and stage 3 without it."""
    config, layout = run.config, run.layout
    stages, micro_batches = layout.pipeline, config.gradient_accumulation_steps
    parts = layout.tensor * stages * layout.sharding
    flat = replace(layout, pipeline=1, virtual_stages=1, sharding=layout.sharding * stages)
    flags = f"--pipeline_parallel_degree 1 --sharding_parallel_degree {flat.sharding}"
    if config.virtual_pp_degree > 1:
        flags += " --virtual_pp_degree 1"
    if micro_batches % stages == 0:
        flags += f" --gradient_accumulation_steps {micro_batches // stages}"
        batch = "the same global batch"
    else:
        samples = config.per_device_train_batch_size * micro_batches * layout.data_world_size
        batch = f"a global batch of {samples * stages} instead of {samples}"
    return (
        f"sharding stage3 with pipeline_parallel_degree = {stages}: every stage would gather its weights for each of the "
        f"{micro_batches} micro-batches, forward and backward, which costs more than it saves. Use one of these layouts:\n"
        f"       --sharding stage2: {replace(layout, sharding_stage=2)}, weights divided by {layout.tensor * stages}\n"
        f"       {flags}: {flat}, weights divided by {parts}, {batch}"
    )


def offload(run: Run) -> Findings:
    """Offloaded optimizer states are not fused."""
    config = run.config
    words = active_switches(config, run.layout)["sharding_parallel_config"].split()
    if run.device == "gpu" and "enable_fuse_optimizer_states" in words:
        for name, is_on in (
            ("offload_optim", config.offload_optim),
            (f"sharding = {config.sharding}", config.sharding_offload),
        ):
            if is_on:
                yield Problem(
                    f"{name} with enable_fuse_optimizer_states: fused optimizer states are one block of device memory, which "
                    "cannot be moved state by state. Drop one of them."
                )


def virtual_stages(run: Run) -> Findings:
    """Virtual stages have a pipeline of more than 2 stages and enough micro-batches."""
    config, layout = run.config, run.layout
    virtual, stages = layout.virtual_stages, layout.pipeline
    if virtual == 1:
        return
    if stages == 1:
        yield Problem(
            f"virtual_pp_degree = {virtual} with pipeline_parallel_degree = 1: virtual stages need a pipeline. Drop "
            "virtual_pp_degree, or set pipeline_parallel_degree."
        )
        return
    if stages <= 2:
        yield Problem(
            f"virtual_pp_degree = {virtual} with pipeline_parallel_degree = {stages}: virtual stages need more than 2 pipeline "
            "stages. Use --virtual_pp_degree 1."
        )
    if config.gradient_accumulation_steps < 2 * stages:
        yield Problem(
            f"virtual_pp_degree = {virtual} with gradient_accumulation_steps = {config.gradient_accumulation_steps}: virtual "
            f"stages need two micro-batches per pipeline stage. Use --gradient_accumulation_steps {2 * stages} or more."
        )


def pipeline_bubble(run: Run) -> Findings:
    """Report how long pipeline stages are idle."""
    stages, micro_batches = run.layout.pipeline, run.config.gradient_accumulation_steps
    if stages > 1 and micro_batches < 2 * stages:
        # With p stages and m micro-batches, a stage of the 1F1B schedule is idle (p - 1) / (m + p - 1) of the time.
        idle = (stages - 1) / (run.layout.virtual_stages * micro_batches + stages - 1)
        yield Notice(
            f"{counted(stages, 'pipeline stage')} with {counted(micro_batches, 'micro-batch', 'micro-batches')}: each is idle {idle:.0%} of "
            "the time. Increase --gradient_accumulation_steps to reduce this."
        )


def evaluation_batch_with_pipeline(run: Run) -> Findings:
    """Report the evaluation batch size of a pipeline."""
    config = run.config
    fixed = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if run.layout.pipeline > 1 and (config.do_eval or config.do_predict) and config.per_device_eval_batch_size != fixed:
        yield Notice(
            f"per_device_eval_batch_size is {fixed} with a pipeline: evaluation uses the same "
            f"{counted(config.gradient_accumulation_steps, 'micro-batch', 'micro-batches')} of "
            f"{config.per_device_train_batch_size} as training."
        )


def sequence_parallel(run: Run) -> Findings:
    """Sequence parallelism has tensor parallel ranks, which divide the sequence."""
    config, layout = run.config, run.layout
    if not config.sequence_parallel:
        if config.fuse_sequence_parallel_allreduce:
            yield Notice("--fuse_sequence_parallel_allreduce has no effect without --sequence_parallel.")
        return
    if layout.tensor == 1:
        yield Problem(
            "sequence_parallel with tensor_parallel_degree = 1: there are no ranks to split the sequence over. Use a degree above "
            "1, or drop --sequence_parallel."
        )
    elif config.max_seq_length % layout.tensor and (
        run.entry == "pretrain" or config.zero_padding or layout.pipeline > 1
    ):
        yield Problem(
            f"sequence_parallel: tensor_parallel_degree = {layout.tensor} does not divide max_seq_length = "
            f"{config.max_seq_length}. Use a multiple of {layout.tensor}."
        )


def optimizer_variants(run: Run) -> Findings:
    """The optimizer supports the layout."""
    config, layout = run.config, run.layout
    if config.optim == "adamw_mini" and layout.tensor > 1:
        yield Problem("optim = adamw_mini cannot split its states over tensor parallel ranks. Use --optim adamw.")
    elif config.optim != "adamw" and layout.world_size > 1:
        yield Notice(f"--optim {config.optim}: only adamw is proven to give the same result in every layout.")


RULES: list[Rule] = [
    sharding_stages,
    sharded_weights,
    offload,
    virtual_stages,
    pipeline_bubble,
    evaluation_batch_with_pipeline,
    sequence_parallel,
    optimizer_variants,
]
