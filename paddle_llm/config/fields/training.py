"""Fields for the schedule, optimizer, precision and evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paddle_llm.config.fields.base import Group


class TrainingFields(Group):
    """Training"""

    do_train: bool = Field(False, description="Train.")
    do_eval: bool = Field(
        False,
        description="Evaluate loss and perplexity on the second share of --split; fine-tuning: on the dev set.",
    )
    do_predict: bool = Field(
        False,
        description="After training, evaluate once on the third share of --split; fine-tuning: on the test set.",
    )
    evaluation_strategy: Literal["no", "steps", "epoch"] | None = Field(
        None,
        description="When to evaluate. Unset: every --eval_steps with --do_eval (fine-tuning: every epoch, unless --eval_steps "
        "is given), else never.",
    )
    per_device_train_batch_size: int = Field(
        1, ge=1, description="Sequences per rank and micro-batch. 1 needs the least memory; PaddleNLP's default is 8."
    )
    per_device_eval_batch_size: int = Field(
        1,
        ge=1,
        description="Sequences per rank in evaluation. With pipeline stages always train batch size x accumulation steps.",
    )
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="Micro-batches per optimizer step; with pipeline stages the micro-batches of the pipeline.",
    )
    max_steps: int = Field(
        -1, description="Optimizer steps; takes precedence over --num_train_epochs. -1: count in epochs."
    )
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the data without --max_steps.")
    learning_rate: float = Field(
        3e-4,
        gt=0,
        description="Peak learning rate. Pretraining: 3e-4 as for LLaMA 7B from random weights; use about 1e-5 to continue from "
        "existing weights. Fine-tuning: depends on the method, see configs/README.md. PaddleNLP's default is 5e-5.",
    )
    min_learning_rate: float | None = Field(
        None,
        ge=0,
        description="Final learning rate of cosine and linear schedules. Unset: a tenth of --learning_rate.",
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = Field(
        "cosine", description="Schedule of the learning rate. PaddleNLP's default is linear."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up; takes precedence over --warmup_ratio.")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Warm-up as a share of all steps.")
    decay_steps: int | None = Field(
        None, ge=1, description="Step at which the schedule reaches --min_learning_rate. Unset: the last step."
    )
    lr_end: float = Field(1e-7, ge=0, description="Final learning rate of the polynomial schedule.")
    power: float = Field(1.0, gt=0, description="Exponent of the polynomial schedule.")
    optim: Literal["adamw", "adamw_mini", "adamw_custom", "adamw_16bit_moment"] = Field(
        "adamw",
        description="Optimizer, one of PaddleNLP's AdamW variants. Only adamw is proven to give the same result in every layout.",
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW; not applied to biases and norms.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of AdamW's first moment.")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="Decay of AdamW's second moment (PaddleNLP: 0.999).")
    adam_epsilon: float = Field(1e-8, gt=0, description="Epsilon of AdamW.")
    max_grad_norm: float = Field(
        1.0, ge=0, description="Gradients are clipped to this norm over all ranks. 0: no clipping."
    )
    seed: int = Field(
        42, ge=0, lt=2**32, description="Seed of weights and dropout and, without --data_seed, of the order of samples."
    )
    deterministic: bool = Field(
        False,
        description="Use deterministic kernels (GPU), which exact resume needs there; slower. CPU kernels are always deterministic.",
    )
    bf16: bool = Field(False, description="Compute in bfloat16 (GPU).")
    fp16: bool = Field(False, description="Compute in float16 with loss scaling (GPU).")
    fp16_opt_level: Literal["O0", "O1", "O2"] = Field(
        "O1",
        description="O1: selected operations in 16 bits. O2: also the weights, with fp32 master weights. For fp16 and bf16.",
    )
    scale_loss: float = Field(32768.0, gt=0, description="Initial loss scale of fp16.")
    amp_master_grad: bool = Field(False, description="With O2: fp32 gradients for accumulation, clipping and update.")
    amp_custom_black_list: list[str] | None = Field(
        None, description="Operations kept in fp32, in addition to Paddle's list."
    )
    amp_custom_white_list: list[str] | None = Field(
        None, description="Operations run in 16 bits, in addition to Paddle's list."
    )
    recompute: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more computation."
    )
    recompute_granularity: Literal["full", "full_attn", "core_attn"] = Field(
        "full",
        description="Part of a layer that is recomputed: all of it, the attention block, or the attention product.",
    )
    recompute_use_reentrant: bool = Field(False, description="Use Paddle's older implementation of recompute.")
    no_recompute_layers: list[int] | None = Field(
        None, description="Indices of layers that are not recomputed (LLaMA)."
    )
    pp_recompute_interval: int = Field(1, ge=0, description="Pipeline: recompute every n-th layer. 0: none.")
    offload_recompute_inputs: bool = Field(
        False, description="Keep the inputs of recomputed layers in host memory (GPU)."
    )
    eval_steps: int = Field(500, ge=1, description="Steps between evaluations (PaddleNLP: --logging_steps).")
    eval_iters: int = Field(10, ge=1, description="Batches per evaluation; 10 as in PaddleNLP's pretraining.")
    nan_policy: Literal["stop", "skip", "rollback"] = Field(
        "stop",
        description="When the loss is not finite: stop and name the samples; skip and count the step; or go back to the newest "
        "checkpoint and skip the step when it comes again.",
    )
    max_rollbacks: int = Field(
        3, ge=1, description="Rollbacks in a training with --nan_policy rollback; after them it stops."
    )
    spike_policy: Literal["mark", "skip"] = Field(
        "mark",
        description="When the loss is more than 6 standard deviations above the mean of the last 128 steps: mark the step in "
        "metrics.jsonl, or also skip its update.",
    )
    load_best_model_at_end: bool = Field(False, description="End with the weights of the best evaluation.")
    metric_for_best_model: str | None = Field(
        None,
        description="Metric that selects the best model: loss or ppl; with --eval_with_do_generation also bleu, rouge1, rouge2, "
        "rougeL or exact_match. Unset: loss.",
    )
    greater_is_better: bool | None = Field(
        None, description="Whether a greater value of that metric is better. Unset: true for scores, false for losses."
    )
