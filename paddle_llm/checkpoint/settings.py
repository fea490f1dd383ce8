"""The settings of a training, recorded in its checkpoints and compared when it resumes.

A changed setting is an error unless it is in one of the lists below: settings without effect on the weights, or
settings that another check covers. A new field is compared by default. `--allow_schedule_change` accepts another
learning-rate schedule, `--resume_with_changed_settings` every setting including the schedule. Neither accepts other data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddle_llm.checkpoint.folder import read_manifest
from paddle_llm.config.fields.finetune import GenerationFields
from paddle_llm.config.fields.method import MethodFields
from paddle_llm.config.reader import Resolved
from paddle_llm.config.run_config import fields_of
from paddle_llm.config.steps import learning_rate_at, schedule_of
from paddle_llm.core.errors import UserError

FLAG = "--resume_with_changed_settings"
SCHEDULE_FLAG = "--allow_schedule_change"

# Settings without effect on the trained weights, beyond rounding.
WITHOUT_EFFECT = frozenset(
    {
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint"),
        *("resume_with_changed_settings", "allow_schedule_change"),
        *("logging_steps", "logging_first_step", "report_to", "run_name", "disable_tqdm", "skip_profile_timer"),
        *("save_strategy", "save_steps", "save_on_exit", "save_total_limit", "merge_weights", "model_format"),
        *("do_train", "do_eval", "do_predict", "evaluation_strategy", "eval_steps", "eval_iters"),
        *("per_device_eval_batch_size", *GenerationFields.model_fields),
        *("device", "cpu_threads", "dataloader_num_workers", "data_cache", "share_folder", "data_impl"),
        *("use_flash_attention", "use_fused_rms_norm", "use_fused_rope", "fuse_sequence_parallel_allreduce"),
        *("recompute", "recompute_granularity", "recompute_use_reentrant", "no_recompute_layers"),
        *("pp_recompute_interval", "offload_recompute_inputs", "offload_optim", "release_grads"),
        *("nan_policy", "max_rollbacks", "spike_policy", "allow_pickle", "continue_training", "deterministic"),
        *("verify_checkpoint", "save_failure", "async_save"),
        *("pad_to_max_length", "pad_to_multiple_of"),  # padding is masked; a pipeline always pads to the maximum
    }
)
# Settings that are read at the first step only, or whose content is compared instead of the path.
COMPARED_BY_CONTENT = frozenset(
    {
        *("model_name_or_path", "tokenizer_name_or_path", "model_type", "lora_path", "prefix_path"),
        *("dataset_name_or_path", "input_dir", "prompt_templates", "chat_template", "data_format"),
        *("skip_bad_rows", "long_samples"),
    }
)
# `check_layout` and `check_identity` compare the layout, the global batch and the method of fine-tuning.
CHECKED_ELSEWHERE = frozenset(
    {
        *("tensor_parallel_degree", "pipeline_parallel_degree", "virtual_pp_degree", "sequence_parallel"),
        *("sharding", "sharding_parallel_degree", "data_parallel_degree", "hybrid_parallel_topo_order"),
        *("tensor_parallel_config", "pipeline_parallel_config", "sharding_parallel_config"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "num_hidden_layers"),
        *(MethodFields.model_fields.keys() - {"label_smoothing", "lr_decay_ratio"}),
    }
)
# Settings that are compared through the learning rate of every step.
COMPARED_BY_LEARNING_RATE = frozenset(
    {
        *("max_steps", "num_train_epochs", "learning_rate", "min_learning_rate", "lr_decay_ratio"),
        *("lr_scheduler_type", "warmup_steps", "warmup_ratio", "decay_steps", "lr_end", "power"),
    }
)


def compared_fields(entry: str) -> list[str]:
    """Return the fields that must be equal: all that are in none of the lists above.

    Args:
        entry: Kind of the job, "pretrain" or "finetune".
    """
    return [
        name
        for name in fields_of(entry)
        if name not in WITHOUT_EFFECT | COMPARED_BY_CONTENT | CHECKED_ELSEWHERE | COMPARED_BY_LEARNING_RATE
    ]


def record_of(resolved: Resolved, steps: int) -> dict[str, Any]:
    """Return the record of a training's settings that a checkpoint contains, as JSON.

    Args:
        resolved: Configuration of the job.
        steps: Optimizer steps of the whole training.
    """
    config = resolved.config
    schedule = schedule_of(config, steps)
    if config.adalora:
        schedule["steps of AdaLoRA's budget"] = steps
    return {
        "entry": resolved.entry,
        "steps": steps,
        "schedule": schedule,
        "compared": {name: getattr(config, name) for name in compared_fields(resolved.entry)},
        "by_content": {
            name: getattr(config, name) for name in fields_of(resolved.entry) if name in COMPARED_BY_CONTENT
        },
    }


def check_settings(start: Path, resolved: Resolved) -> list[str]:
    """Compare the settings of a run with those of the checkpoint from which it resumes, except for the length.

    Args:
        start: Folder of the checkpoint.
        resolved: Configuration of the job.

    Returns:
        Lines to report.

    Raises:
        UserError: If a setting differs and `--resume_with_changed_settings` is not set.
    """
    saved = _saved(start)
    if saved is None:
        return [f"{start} has no record of its settings: they are not compared."]
    now = record_of(resolved, 1)["compared"]
    changed = _differences(saved["compared"], now)
    allowed = resolved.config.resume_with_changed_settings
    return _report_changes(start, changed, resolved, "Use the same values", FLAG, allowed)


def check_length(start: Path, resolved: Resolved, steps: int) -> list[str]:
    """Compare the length and the schedule of a run, which are known after the data is read.

    Args:
        start: Folder of the checkpoint.
        resolved: Configuration of the job.
        steps: Optimizer steps of the whole training.

    Returns:
        Lines to report.

    Raises:
        UserError: If the learning rate of a step differs and neither `--allow_schedule_change` nor
            `--resume_with_changed_settings` is set.
    """
    saved = _saved(start)
    if saved is None:
        return []
    now = record_of(resolved, steps)["schedule"]
    changed = _differences(saved["schedule"], now)
    length = [f"training steps {saved['steps']} -> {steps}"] if steps != saved["steps"] else []
    if not changed:
        return [f"{start}: {line}; the learning-rate schedule up to this checkpoint is the same." for line in length]
    if length and (saved["schedule"].get("decay_steps"), now.get("decay_steps")) == (saved["steps"], steps):
        changed = [line for line in changed if not line.startswith("decay_steps ")]  # the length, once more
    step = read_manifest(start)["step"]
    before, after = (learning_rate_at(schedule, step) for schedule in (saved["schedule"], now))
    rate = f"learning rate of step {step + 1} {before:.3g} -> {after:.3g}"
    advice = "The learning-rate schedule would jump. Use the same --num_train_epochs or --max_steps, learning rates and warm-up"
    allowed = resolved.config.allow_schedule_change or resolved.config.resume_with_changed_settings
    return _report_changes(start, [*length, *changed, rate], resolved, advice, SCHEDULE_FLAG, allowed)


def changed_data_settings(start: Path, resolved: Resolved) -> list[str]:
    """Return "name old -> new" of the changed settings that decide which data is read and how.

    Args:
        start: Folder of the checkpoint.
        resolved: Configuration of the job.
    """
    saved = _saved(start)
    return [] if saved is None else _differences(saved["by_content"], record_of(resolved, 1)["by_content"])


def _saved(start: Path) -> dict[str, Any] | None:
    return read_manifest(start).get("settings")


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return "name old -> new" of differing fields. A field that only one of the two has was added or removed since."""
    return [
        f"{name} {_shown(saved[name])} -> {_shown(now[name])}"
        for name in saved
        if name in now and saved[name] != now[name]
    ]


def _shown(value: Any) -> str:
    return "none" if value is None or value == "" else str(value)


def _report_changes(
    start: Path, changed: list[str], resolved: Resolved, advice: str, flag: str, is_allowed: bool
) -> list[str]:
    """Return a line about changes that are allowed.

    Args:
        start: Folder of the checkpoint.
        changed: "name old -> new" of each change.
        resolved: Configuration of the job.
        advice: How to avoid the changes.
        flag: Flag that allows them.
        is_allowed: Whether they are allowed, by this flag or another one.

    Raises:
        UserError: If there are changes that are not allowed.
    """
    if not changed:
        return []
    problem = f"{start} was saved with different settings: {'; '.join(changed)}."
    if is_allowed:
        return [f"{problem} The run continues with the new ones ({flag})."]
    output = Path(resolved.config.output_dir)
    further = "--model_name_or_path" if resolved.entry == "pretrain" else "its model or adapter"
    raise UserError(
        f"{problem} {advice}, continue with the new ones ({flag} 1), or start a new training from the result in {output} "
        f"({further}, another --output_dir). --overwrite_output_dir 1 deletes this result and starts again."
    )
