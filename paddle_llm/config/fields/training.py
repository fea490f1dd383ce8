"""Fields that say how the weights are changed: schedule, optimizer, precision, evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paddle_llm.config.fields.base import Group


class TrainingFields(Group):
    """Training"""

    do_train: bool = Field(False, description="Train.")
    do_eval: bool = Field(
        False,
        description="Evaluate (loss and perplexity): on the second share of --split; fine-tuning: on the dev set.",
    )
    do_predict: bool = Field(
        False,
        description="After training, evaluate once: on the third share of --split; fine-tuning: on the test set.",
    )
    evaluation_strategy: Literal["no", "steps", "epoch"] | None = Field(
        None,
        description="When to evaluate. Absent: every --eval_steps with --do_eval (fine-tuning: every epoch, unless --eval_steps "
        "is given), else never.",
    )
    per_device_train_batch_size: int = Field(
        1, ge=1, description="Sequences per rank and micro batch. 1 fits everywhere; PaddleNLP's default is 8."
    )
    per_device_eval_batch_size: int = Field(
        1, ge=1, description="The same for evaluation. With pipeline stages it is always train batch x accumulation."
    )
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="Micro batches per optimizer step; with pipeline stages these are the pipeline's micro batches.",
    )
    max_steps: int = Field(-1, description="Optimizer steps; wins over --num_train_epochs. -1: count in epochs.")
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the data when --max_steps is absent.")
    learning_rate: float = Field(
        3e-4,
        gt=0,
        description="Peak learning rate. Pretraining: 3e-4 is LLaMA 7B's from random weights; use about 1e-5 to continue from "
        "existing ones. Fine-tuning: by method, see configs/README.md. PaddleNLP's default is 5e-5.",
    )
    min_learning_rate: float | None = Field(
        None, ge=0, description="Where cosine and linear schedules end. Absent: a tenth of --learning_rate."
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = Field(
        "cosine", description="Schedule of the learning rate. PaddleNLP's default is linear."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warmup; wins over --warmup_ratio.")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Warmup as a share of all steps.")
    decay_steps: int | None = Field(
        None, ge=1, description="Step at which the schedule reaches --min_learning_rate. Absent: the last step."
    )
    lr_end: float = Field(1e-7, ge=0, description="Where the polynomial schedule ends.")
    power: float = Field(1.0, gt=0, description="Exponent of the polynomial schedule.")
    optim: Literal["adamw", "adamw_mini", "adamw_custom", "adamw_16bit_moment"] = Field(
        "adamw", description="Optimizer, one of PaddleNLP's AdamW variants. Layouts are proven equal with adamw only."
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay; biases and norms are left out.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the first moment.")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the second moment (PaddleNLP: 0.999).")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(
        1.0, ge=0, description="Gradients are clipped to this norm over all ranks. 0: no clipping."
    )
    seed: int = Field(
        42, ge=0, lt=2**32, description="Seed of weights, dropout and, without --data_seed, of the order of samples."
    )
    deterministic: bool = Field(
        False,
        description="GPU: choose kernels that give the same bits in every run, which exact resume needs there; slower. On a "
        "CPU they always do.",
    )
    bf16: bool = Field(False, description="Compute in bfloat16 (GPU).")
    fp16: bool = Field(False, description="Compute in float16 with loss scaling (GPU).")
    fp16_opt_level: Literal["O0", "O1", "O2"] = Field(
        "O1",
        description="O1: selected operations in 16 bits. O2: the weights too, with fp32 master copies. For fp16 and bf16.",
    )
    scale_loss: float = Field(32768.0, gt=0, description="First loss scale of fp16.")
    amp_master_grad: bool = Field(False, description="With O2: fp32 gradients for accumulation, clipping and update.")
    amp_custom_black_list: list[str] | None = Field(
        None, description="Operations kept in fp32, beside Paddle's own list."
    )
    amp_custom_white_list: list[str] | None = Field(
        None, description="Operations run in 16 bits, beside Paddle's own list."
    )
    recompute: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more work."
    )
    recompute_granularity: Literal["full", "full_attn", "core_attn"] = Field(
        "full", description="What is recomputed: whole layers, the attention block, or the attention product only."
    )
    recompute_use_reentrant: bool = Field(False, description="Paddle's older implementation of recomputation.")
    no_recompute_layers: list[int] | None = Field(None, description="Layers, from 0, that are not recomputed (LLaMA).")
    pp_recompute_interval: int = Field(1, ge=0, description="Pipeline: recompute every n-th layer. 0: none.")
    offload_recompute_inputs: bool = Field(
        False, description="Keep the inputs of recomputed layers in host memory (GPU)."
    )
    eval_steps: int = Field(500, ge=1, description="Steps between evaluations (PaddleNLP: --logging_steps).")
    eval_iters: int = Field(
        10, ge=1, description="Batches per evaluation; 10 is what PaddleNLP's pretraining has fixed."
    )
    nan_policy: Literal["stop", "skip"] = Field(
        "stop", description="Loss not finite: stop and name the samples, or skip the step and count it."
    )
    load_best_model_at_end: bool = Field(False, description="End with the weights of the best evaluation.")
    metric_for_best_model: str | None = Field(
        None,
        description="Metric that decides which is best: loss or ppl; with --eval_with_do_generation also bleu, rouge1, rouge2, "
        "rougeL or exact_match. Absent: loss.",
    )
    greater_is_better: bool | None = Field(
        None, description="Whether more of that metric is better. Absent: not of losses, but of scores."
    )
