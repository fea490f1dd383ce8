"""Rules about tasks, device, precision and reports, which need neither the layout nor the model."""

from __future__ import annotations

import difflib
from importlib.util import find_spec

from paddle_llm.config.rules.engine import Findings, Notice, Problem, Rule, Run, pretraining


def has_a_task(run: Run) -> Findings:
    """The run trains, evaluates or predicts."""
    config = run.config
    if not (config.do_train or config.do_eval or config.do_predict):
        yield Problem("nothing to do. Give --do_train, --do_eval or --do_predict.")


def required(run: Run) -> Findings:
    """Required fields are given."""
    for name, example in (
        ("model_name_or_path", "/path/to/llama-7b"),
        ("input_dir", "./data"),
        ("output_dir", "./output/first-run"),
    ):
        if name == "input_dir" and run.entry != "pretrain":
            continue
        if not getattr(run.config, name):
            yield Problem(f"{name} is missing. Give it, for example --{name} {example}")


@pretraining
def split_shares(run: Run) -> Findings:
    """`split` has three shares, and each task has documents."""
    config = run.config
    try:
        shares = [float(share) for share in config.split.replace("/", ",").split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 0 or sum(shares) == 0:
        yield Problem(f"split = {config.split}: expected three shares of at least 0. Example: 949,50,1.")
        return
    for flag, share, part in (
        ("do_train", shares[0], "train on"),
        ("do_eval", shares[1], "evaluate on"),
        ("do_predict", shares[2], "predict on"),
    ):
        if getattr(config, flag) and share == 0:
            yield Problem(
                f"--{flag} with split = {config.split}: no documents are left to {part}. Change --split, or drop --{flag}."
            )


def device_name(run: Run) -> Findings:
    """The device is gpu or cpu."""
    name = run.config.device
    if name is None or name in ("gpu", "cpu"):
        return
    if name.split(":")[0] in ("gpu", "cpu"):
        yield Problem(
            f"device = {name}: the launcher chooses the device. Use {name.split(':')[0]}, and --gpus {name.split(':')[1]} for the "
            "launcher."
        )
    elif name in ("xpu", "npu", "mlu", "gcu", "intel_hpu"):
        yield Problem(f"device = {name} is not supported. Use gpu or cpu.")
    else:
        close = difflib.get_close_matches(name, ["gpu", "cpu"], 1)
        yield Problem(f"device = {name} is unknown.{f' Did you mean {close[0]}?' if close else ''} Use gpu or cpu.")


def one_precision(run: Run) -> Findings:
    """At most one 16-bit precision is chosen."""
    if run.config.fp16 and run.config.bf16:
        yield Problem(
            "fp16 and bf16 are both on. Drop one of them: bf16 needs no loss scaling, fp16 runs on older GPUs."
        )


def precision_switches(run: Run) -> Findings:
    """Settings of 16-bit precisions are given with one, at the level that they need."""
    config = run.config
    if not (config.fp16 or config.bf16):
        for name in (
            "amp_master_grad",
            "scale_loss",
            "fp16_opt_level",
            "amp_custom_black_list",
            "amp_custom_white_list",
        ):
            if name in run.requested and getattr(config, name):
                yield Notice(f"--{name} has no effect without --bf16 or --fp16.")
    elif config.amp_master_grad and config.fp16_opt_level != "O2":
        yield Problem(
            f"amp_master_grad needs fp16_opt_level = O2, not {config.fp16_opt_level}. Use --fp16_opt_level O2, or drop --amp_master_grad."
        )
    if config.bf16 and "scale_loss" in run.requested:
        yield Notice("--scale_loss has no effect with --bf16, which needs no loss scaling.")


def determinism(run: Run) -> Findings:
    """Report `deterministic` on a CPU."""
    if run.config.deterministic and run.device == "cpu":
        yield Notice("--deterministic has no effect on the CPU, where all runs are deterministic.")


def recompute_switches(run: Run) -> Findings:
    """Report settings of recompute without recompute."""
    for name in ("recompute_granularity", "no_recompute_layers", "recompute_use_reentrant", "offload_recompute_inputs"):
        if (
            name in run.requested
            and not run.config.recompute
            and getattr(run.config, name) not in (None, False, "full")
        ):
            yield Notice(f"--{name} has no effect without --recompute.")


REPORTERS = {"visualdl": "visualdl", "wandb": "wandb", "tensorboard": "tensorboardX"}


def reporters(run: Run) -> Findings:
    """Programs for curves are known and installed."""
    config = run.config
    words = config.report_to
    alone = [word for word in words if word in ("all", "none")]
    if alone and len(words) > 1:
        yield Problem(f"report_to = {' '.join(words)}: {alone[0]} cannot be combined with others. Use it alone.")
    for word in words:
        if word in alone:
            continue
        if word not in REPORTERS:
            yield Problem(f"report_to = {word} is unknown. Use visualdl, wandb, tensorboard, all or none.")
        elif find_spec(REPORTERS[word]) is None:
            yield Problem(
                f"report_to = {word}: the package {REPORTERS[word]} is not installed. Install it, or drop {word}."
            )
    if config.run_name is not None and not {"wandb", "all"} & set(words):
        yield Notice("--run_name has no effect without --report_to wandb.")


RULES: list[Rule] = [
    has_a_task,
    required,
    split_shares,
    device_name,
    one_precision,
    precision_switches,
    determinism,
    recompute_switches,
    reporters,
]
