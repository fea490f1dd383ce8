"""The settings of a rehearsal: those of the real config, except for the ones that are listed here.

The number of micro-batches keeps its relation to the number of pipeline stages. The optimizer takes small steps, for
which the oracle's limits hold.
"""

from __future__ import annotations

from typing import Any

from paddle_llm.config.fields.finetune import GenerationFields
from paddle_llm.config.layout import Layout
from paddle_llm.config.reader import Resolved
from paddle_llm.config.run_config import RunConfig
from paddle_llm.rehearse.shrink.small_model import SmallModel

LEARNING_RATE, ADAM_EPSILON, MAX_GRAD_NORM = 1e-3, 1e-4, 0.1  # every step is clipped
# Settings of fine-tuning methods, and their largest values in a rehearsal.
METHOD_LIMITS = {
    "lora_rank": 4,
    "adalora_init_rank": 6,
    "adalora_budget_interval": 1,
    "num_prefix_tokens": 4,
    "num_prompt_tokens": 4,
    "adapter_size": 8,
}
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "lora_dropout")

# Settings that a rehearsal does not use: the length of the run, its files and its reports.
_UNUSED = frozenset(
    [
        *GenerationFields.model_fields,
        "lora_path",
        "prefix_path",
        "merge_weights",
        "lr_decay_ratio",
        "src_length",
        "pad_to_multiple_of",
        "chat_template",
        "chat_template_date",
        "special_tokens_in_content",
        "data_format",
        "prompt_templates",
        "tokenizer_name_or_path",
        "model_type",
        "num_hidden_layers",
        "data_cache",
        "share_folder",
        "dataloader_num_workers",
        "num_train_epochs",
        "min_learning_rate",
        "warmup_steps",
        "warmup_ratio",
        "decay_steps",
        "lr_end",
        "power",
        "eval_steps",
        "eval_iters",
        "evaluation_strategy",
        "do_predict",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "overwrite_output_dir",
        "resume_from_checkpoint",
        "logging_steps",
        "logging_first_step",
        "report_to",
        "run_name",
        "disable_tqdm",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "verify_checkpoint",
        "save_failure",
        "async_save",
        "model_format",
        "skip_profile_timer",
        "cpu_threads",
    ]
)


def shrunk_settings(real: Resolved, layout: Layout, model: SmallModel) -> dict[str, Any]:
    """Return the settings of a sub-layout, without its files, device and number of steps.

    Args:
        real: Config of the cluster.
        layout: The sub-layout.
        model: Small model.
    """
    values = _requested(real) | _layout_values(real, layout) | _size_values(real, model) | _optimizer_values(real)
    return values | (_tuning_values(real, model) if real.entry == "finetune" else {"input_dir": real.config.input_dir})


def _requested(real: Resolved) -> dict[str, Any]:
    """Return the settings that the user has given, as the user wrote them."""
    written = {
        name: real.requested.get(name, getattr(real.config, name))
        for name in real.origins
        if name in real.requested or not real.origins[name].startswith(("default", "derived"))
    }
    return {name: value for name, value in written.items() if name not in _UNUSED}


def _layout_values(real: Resolved, layout: Layout) -> dict[str, Any]:
    config = real.config
    values = {
        "data_parallel_degree": layout.data,
        "sharding_parallel_degree": layout.sharding,
        "tensor_parallel_degree": layout.tensor,
        "pipeline_parallel_degree": layout.pipeline,
        "virtual_pp_degree": layout.virtual_stages,
        "sequence_parallel": layout.sequence_parallel,
        "sharding": config.sharding if layout.sharding > 1 else "",
    }
    if not layout.sequence_parallel:
        values["fuse_sequence_parallel_allreduce"] = False
    return values


def _size_values(real: Resolved, model: SmallModel) -> dict[str, Any]:
    config = real.config
    values: dict[str, Any] = {
        "max_seq_length": model.sequence,
        "per_device_train_batch_size": min(config.per_device_train_batch_size, 2),
        "per_device_eval_batch_size": min(config.per_device_eval_batch_size, 2),
    }
    if config.no_recompute_layers and real.facts is not None:
        small, count = model.facts.num_hidden_layers, real.facts.num_hidden_layers
        values["no_recompute_layers"] = sorted({layer * small // count for layer in config.no_recompute_layers})
    return values


def _tuning_values(real: Resolved, model: SmallModel) -> dict[str, Any]:
    """Return the settings of fine-tuning, made small."""
    config, length = real.config, model.sequence
    values: dict[str, Any] = {
        "dataset_name_or_path": config.dataset_name_or_path,
        "max_seq_length": length,
        "max_length": max(length * config.max_length // config.max_seq_length, 8) if config.zero_padding else length,
    }
    for name, largest in METHOD_LIMITS.items():
        requested, origin = getattr(config, name), real.origins[name]
        if requested is not None and not origin.startswith(("default", "derived")):
            values[name] = min(requested, largest)
    if config.lora_alpha is not None and "lora_rank" in values:
        values["lora_alpha"] = config.lora_alpha * values["lora_rank"] / config.lora_rank
    if config.freeze_layers and real.facts is not None:
        share = config.freeze_layers / real.facts.num_hidden_layers
        values["freeze_layers"] = max(round(share * model.facts.num_hidden_layers), 1)
    return values


def _optimizer_values(real: Resolved) -> dict[str, Any]:
    """Return the optimizer settings for which the oracle's limits hold, and no dropout."""
    values: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "linear",  # a different rate at each step, so that a shifted schedule is detected
        "adam_epsilon": ADAM_EPSILON,
        "optim": "adamw",
        "max_grad_norm": MAX_GRAD_NORM if real.config.max_grad_norm else 0.0,
    }
    values |= {name: 0.0 for name in DROPOUTS if getattr(real.config, name)}
    return values


def micro_batches_of(real: Resolved, layouts: list[Layout]) -> list[int]:
    """Return the number of micro-batches of each sub-layout.

    It has the same relation to the number of stages as in the real config. If possible, all sub-layouts get the same
    global batch: then they are the same training, and the reference in one process is run only once.

    Args:
        real: Config of the cluster.
        layouts: The sub-layouts.
    """
    fewest = [_fewest_micro_batches(real.config, real.layout, one) for one in layouts]
    batch = max(count * one.data_world_size for count, one in zip(fewest, layouts, strict=True))
    result = []
    for count, one in zip(fewest, layouts, strict=True):
        several = one.pipeline == 1 or count == 2 * one.pipeline
        more, rest = divmod(batch, one.data_world_size)
        result.append(more if count > 1 and several and not rest and more % one.pipeline == 0 else count)
    return result


def _fewest_micro_batches(config: RunConfig, layout: Layout, small: Layout) -> int:
    """Return the smallest number: one or several; in a pipeline fewer than stages, as many or more, as in the config."""
    real, stages = config.gradient_accumulation_steps, small.pipeline
    if layout.pipeline == 1 or stages == 1:
        return min(real, 2)
    if real < layout.pipeline:
        return min(real, max(stages - 1, 1))
    if real == layout.pipeline:
        return stages
    return 2 * stages if real % layout.pipeline == 0 else 2 * stages + 1
