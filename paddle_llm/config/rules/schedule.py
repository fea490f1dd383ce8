"""Rules about the length of the training, the learning rate, evaluations and checkpoints."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.config.legacy.other_trainers import VALUES
from paddle_llm.config.rules.engine import Findings, Notice, Problem, Rule, Run
from paddle_llm.config.run_config import LOSSES, SCORES, RunConfig
from paddle_llm.config.steps import step_notices, warmup_problems


def max_steps(run: Run) -> Findings:
    """The number of steps is positive or counted in epochs."""
    steps = run.config.max_steps
    if steps == 0 or steps < -1:
        yield Problem(
            f"max_steps = {steps} is not positive. Use a positive number, or drop it and give --num_train_epochs."
        )
    elif steps > 0 and "num_train_epochs" in run.requested and "max_steps" in run.requested:
        yield Notice(f"--num_train_epochs has no effect: --max_steps {steps} takes precedence.")


def learning_rates(run: Run) -> Findings:
    """The minimum is below the peak; report settings that the schedule does not use."""
    config = run.config
    low = config.min_learning_rate
    if low is not None and low > config.learning_rate:
        yield Problem(
            f"min_learning_rate = {low} is above learning_rate = {config.learning_rate}. Use a smaller value."
        )
    kind = config.lr_scheduler_type
    if kind not in ("cosine", "linear"):
        for name in ("min_learning_rate", "decay_steps"):
            if name in run.requested and getattr(config, name) is not None:
                yield Notice(f"--{name} has no effect with --lr_scheduler_type {kind}.")
    if kind != "polynomial":
        for name in ("lr_end", "power"):
            if name in run.requested:
                yield Notice(f"--{name} has no effect with --lr_scheduler_type {kind}.")


def warmup(run: Run) -> Findings:
    """The warm-up is shorter than the schedule."""
    config = run.config
    if config.warmup_steps > 0 and config.warmup_ratio > 0:
        yield Notice(f"--warmup_ratio has no effect: --warmup_steps {config.warmup_steps} takes precedence.")
    if (config.warmup_steps or config.warmup_ratio) and config.lr_scheduler_type == "constant":
        yield Notice("warm-up has no effect with --lr_scheduler_type constant. Use constant_with_warmup to warm up.")
    yield from map(Problem, warmup_problems(config, config.max_steps if config.max_steps > 0 else None))


def flags_without_evaluation(config: RunConfig) -> str:
    """Return all flags that a run which evaluates needs so that it no longer does, such as `--do_eval 0`."""
    flags = ["--do_eval 0"] if config.do_eval else []
    if config.evaluation_strategy in ("steps", "epoch"):
        flags.append("--evaluation_strategy no")
    if config.load_best_model_at_end:
        flags.append("--load_best_model_at_end 0")
    if config.early_stopping_patience is not None:
        flags.append("--early_stopping_patience null")
    return " ".join(flags)


def evaluation_strategy(run: Run) -> Findings:
    """`evaluation_strategy` and `do_eval` agree."""
    config = run.config
    strategy = config.evaluation_strategy
    if strategy == "no" and config.do_eval:
        yield Problem("evaluation_strategy = no and do_eval = true contradict each other. Drop one of them.")
    if strategy in ("steps", "epoch") and not config.do_eval:
        if "do_eval" in run.requested:
            yield Problem(
                f"evaluation_strategy = {strategy} and do_eval = false contradict each other. Change one of them."
            )
        else:
            yield Notice(f"--evaluation_strategy {strategy} turns --do_eval on.")
    if not config.do_eval and strategy in (None, "no"):
        for name in ("eval_steps", "eval_iters"):
            if name in run.requested:
                yield Notice(f"--{name} has no effect without --do_eval.")


def events_within_the_run(run: Run) -> Findings:
    """Report intervals of evaluation, checkpoints and logging that are longer than the run."""
    config = run.config
    if not config.do_train or config.max_steps <= 0:
        return
    training = f"max_steps = {config.max_steps}"
    yield from map(Notice, step_notices(config, config.max_steps, run.requested, training))


def best_model(run: Run) -> Findings:
    """The best model is measured and saved."""
    config = run.config
    if not config.load_best_model_at_end:
        for name in ("metric_for_best_model", "greater_is_better"):
            if name in run.requested and getattr(config, name) is not None:
                yield Notice(f"--{name} has no effect without --load_best_model_at_end.")
        return
    yield from _metric(config)
    evaluates = config.evaluation_strategy or ("steps" if config.do_eval else "no")
    if evaluates == "no" or ("do_eval" in run.requested and not config.do_eval):
        yield Problem("load_best_model_at_end without an evaluation. Add --do_eval.")
    elif evaluates != config.save_strategy:
        yield Problem(
            f"load_best_model_at_end with evaluation_strategy = {evaluates} and save_strategy = {config.save_strategy}: the best "
            "model can only be loaded if it was saved. Use the same strategy for both."
        )
    elif evaluates == "steps" and config.save_steps % config.eval_steps:
        yield Problem(
            f"load_best_model_at_end with save_steps = {config.save_steps} and eval_steps = {config.eval_steps}: some saved models "
            "would not have been evaluated. Make save_steps a multiple of eval_steps."
        )


def _metric(config: RunConfig) -> Findings:
    metric = config.metric_for_best_model
    if metric == "accuracy":  # of single tokens; most of PaddleNLP's JSON files have it
        yield Notice("metric_for_best_model = accuracy is read as loss: the accuracy of single tokens is not measured.")
    elif metric is None or metric.removeprefix("eval_") in LOSSES:
        return
    elif config.eval_with_do_generation:
        known = (*LOSSES, *SCORES)
        if metric.removeprefix("eval_") not in known:
            yield Problem(f"metric_for_best_model = {metric} is not measured. Use one of {', '.join(known)}.")
    elif metric.removeprefix("eval_") in SCORES:
        yield Problem(f"metric_for_best_model = {metric} needs generated answers. Add --eval_with_do_generation.")
    else:
        yield Problem(f"metric_for_best_model = {metric} is not measured. Use loss or ppl.")


def save_steps_count(run: Run) -> Findings:
    """Report `save_steps` without the strategy that uses it."""
    if run.config.save_strategy != "steps" and "save_steps" in run.requested:
        yield Notice(f"--save_steps has no effect with --save_strategy {run.config.save_strategy}.")


def resume_and_overwrite(run: Run) -> Findings:
    """A checkpoint to resume from exists and is used for training."""
    config = run.config
    if config.resume_from_checkpoint and config.overwrite_output_dir:
        yield Notice("--overwrite_output_dir with --resume_from_checkpoint: the run continues from that checkpoint.")
    word = config.resume_from_checkpoint or ""
    use = VALUES["resume_from_checkpoint"].get(word.lower())
    if use and not Path(word).exists():
        yield Problem(f"resume_from_checkpoint = {word}: no such folder exists. Use {use}.")
    elif config.resume_from_checkpoint and not config.do_train:
        yield Problem(
            "resume_from_checkpoint with do_train = false: only a training run can be resumed. To evaluate a trained model, use "
            f"--model_name_or_path OUTPUT_DIR/model{' --continue_training 1' if run.entry == 'pretrain' else ''}"
        )


def rollbacks(run: Run) -> Findings:
    """Report `max_rollbacks` without the policy that uses it."""
    if run.config.nan_policy != "rollback" and "max_rollbacks" in run.requested:
        yield Notice(f"--max_rollbacks has no effect with --nan_policy {run.config.nan_policy}.")


RULES: list[Rule] = [
    max_steps,
    learning_rates,
    warmup,
    evaluation_strategy,
    events_within_the_run,
    best_model,
    save_steps_count,
    rollbacks,
    resume_and_overwrite,
]
