"""Turn the config of a cluster into small configs of the same kind, one for each sub-layout.

Every setting is kept, except for those listed here: sizes become small (`small_model.py`), degrees are those of the
sub-layout (`sub_layouts.py`), the number of micro-batches keeps its relation to the stages, and the optimizer takes
small steps, for which the oracle's limits hold. The results are read by the real reader.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_llm.config.device import UNSUPPORTED
from paddle_llm.config.fields.finetune import GenerationFields
from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.config.reader import Resolved, entry_of, resolve
from paddle_llm.config.run_config import RunConfig, fields_of
from paddle_llm.core.artifacts import MODEL_CONFIG
from paddle_llm.core.errors import ConfigError, UserError
from paddle_llm.rehearse.small_model import SmallModel, small_model
from paddle_llm.rehearse.sub_layouts import sub_layouts_of

LEARNING_RATE, ADAM_EPSILON, CLIPPED_AT = 1e-3, 1e-4, 0.1

# Settings of the length of a run, its files and its reports, which a rehearsal does not use.
_DROPPED = frozenset(
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
        "model_format",
        "unified_checkpoint",
        "unified_checkpoint_config",
        "skip_profile_timer",
        "cpu_threads",
    ]
)


@dataclass(frozen=True)
class Change:
    """A difference between the config and the rehearsal.

    Attributes:
        what: Name of the setting.
        real: Value in the config.
        rehearsed: Value in the rehearsal.
    """

    what: str
    real: str
    rehearsed: str


@dataclass(frozen=True)
class Shrunk:
    """The small configs of a rehearsal.

    Attributes:
        configs: Resolved config of each sub-layout, in the order in which they run.
        model: Model that all of them train.
        remarks: What the sub-layouts do not cover, one line each.
        changes: Settings that differ from the real config.
    """

    configs: list[Resolved]
    model: SmallModel
    remarks: list[str]
    changes: list[Change]


def read_real(argv: list[str], world_size: int) -> Resolved:
    """Read and check a config as the cluster would.

    Args:
        argv: Words of the command line.
        world_size: Number of ranks on the cluster.

    Raises:
        ConfigError: If the config contains mistakes; the message lists all of them.
        UserError: If the config does not train, or the model's config.json cannot be found.
    """
    entry = entry_of(argv)
    resolved = resolve(argv, world_size=world_size, entry=entry, device="gpu")
    if resolved.requested.get("device") == "cpu":
        resolved = resolve(argv, world_size=world_size, entry=entry, device="cpu")
    if not resolved.config.do_train:
        raise UserError("do_train is false, but a rehearsal is a short training. Add --do_train.")
    if resolved.facts is not None:
        return resolved
    from paddle_llm.models.configuration.hub import model_folder

    model_folder(resolved.config.model_name_or_path, weights=False)
    return resolve(argv, world_size=world_size, entry=entry, device=resolved.config.device)


def shrink(real: Resolved, ranks: int, steps: int, folder: Path) -> Shrunk:
    """Return small configs for a number of CPU ranks.

    Args:
        real: Config of the cluster.
        ranks: Largest number of ranks of a sub-layout.
        steps: Optimizer steps.
        folder: Folder to which the small config.json and other files for the reader are written.

    Raises:
        UserError: If there are too few ranks for any sub-layout.
    """
    assert real.facts is not None
    sub_layouts = sub_layouts_of(real.layout, ranks)
    tensor, stages, virtual = (
        max(getattr(layout, name) for layout in sub_layouts.layouts)
        for name in ("tensor", "pipeline", "virtual_stages")
    )
    model = small_model(real.facts, real.layout, real.config.max_seq_length, tensor, stages, virtual)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_CONFIG).write_text(json.dumps(model.facts.raw, indent=1))
    assert read_model_facts(folder) == model.facts
    micro_batches = _micro_batches_of(real, sub_layouts.layouts)
    resolved = [
        _resolve(real, layout, model, folder, {"gradient_accumulation_steps": count, "max_steps": steps})
        for layout, count in zip(sub_layouts.layouts, micro_batches, strict=True)
    ]
    return Shrunk(resolved, model, sub_layouts.remarks, _changes(real, resolved, model))


def _resolve(real: Resolved, layout: Layout, model: SmallModel, folder: Path, steps: dict[str, int]) -> Resolved:
    """Return the config of one sub-layout, read by the real reader."""
    values = _requested(real) | _layout_values(real, layout) | _size_values(real, model) | _measure_values(real)
    values |= _tuning_values(real, model) if real.entry == "finetune" else {"input_dir": real.config.input_dir}
    values |= {
        "model_name_or_path": str(folder),
        "output_dir": str(folder / "output"),
        "device": "cpu",
        "do_train": True,
        "continue_training": False,
        **steps,
    }
    file = folder / "run.json"
    file.write_text(json.dumps(values))
    try:
        resolved = resolve([str(file)], world_size=layout.world_size, entry=real.entry, device="cpu")
    except ConfigError as error:
        raise RuntimeError(
            f"the small config of {layout} violates a rule that the real one satisfies: {error}"
        ) from error
    if resolved.layout != layout:
        raise RuntimeError(f"the small config of {layout} was read as {resolved.layout}")
    return resolved


def _requested(real: Resolved) -> dict[str, Any]:
    """Return the settings that the user has given, as written."""
    written = {
        name: real.requested.get(name, getattr(real.config, name))
        for name in real.origins
        if name in real.requested or not real.origins[name].startswith(("default", "derived"))
    }
    return {name: value for name, value in written.items() if name not in _DROPPED}


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


def _micro_batches_of(real: Resolved, layouts: list[Layout]) -> list[int]:
    """Return the number of micro-batches of each sub-layout.

    It has the same relation to the stages as in the real config. If possible, all sub-layouts get the same global
    batch: then they are the same training, and the reference in one process is run only once.
    """
    least = [_micro_batches(real.config, real.layout, one) for one in layouts]
    batch = max(count * one.data_world_size for count, one in zip(least, layouts, strict=True))
    result = []
    for count, one in zip(least, layouts, strict=True):
        several = one.pipeline == 1 or count == 2 * one.pipeline
        more, rest = divmod(batch, one.data_world_size)
        result.append(more if count > 1 and several and not rest and more % one.pipeline == 0 else count)
    return result


def _micro_batches(config: RunConfig, layout: Layout, small: Layout) -> int:
    """Return one or several micro-batches; in a pipeline fewer than stages, as many, or more, as in the real run."""
    real, stages = config.gradient_accumulation_steps, small.pipeline
    if layout.pipeline == 1 or stages == 1:
        return min(real, 2)
    if real < layout.pipeline:
        return min(real, max(stages - 1, 1))
    if real == layout.pipeline:
        return stages
    return 2 * stages if real % layout.pipeline == 0 else 2 * stages + 1


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
    config, row = real.config, model.sequence
    values: dict[str, Any] = {
        "dataset_name_or_path": config.dataset_name_or_path,
        "max_seq_length": row,
        "max_length": max(row * config.max_length // config.max_seq_length, 8) if config.zero_padding else row,
    }
    for name, most in _SMALL_METHODS.items():
        requested, origin = getattr(config, name), real.origins[name]
        if requested is not None and not origin.startswith(("default", "derived")):
            values[name] = min(requested, most)
    if config.lora_alpha is not None and "lora_rank" in values:
        values["lora_alpha"] = config.lora_alpha * values["lora_rank"] / config.lora_rank
    if config.freeze_layers and real.facts is not None:
        share = config.freeze_layers / real.facts.num_hidden_layers
        values["freeze_layers"] = max(round(share * model.facts.num_hidden_layers), 1)
    return values


_SMALL_METHODS = {
    "lora_rank": 4,
    "adalora_init_rank": 6,
    "adalora_budget_interval": 1,
    "num_prefix_tokens": 4,
    "num_prompt_tokens": 4,
    "adapter_size": 8,
}


def _measure_values(real: Resolved) -> dict[str, Any]:
    """Return the optimizer settings for which the oracle's limits hold; the clipping norm always clips."""
    values: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "linear",  # a different rate at each step, so that a shifted schedule is detected
        "adam_epsilon": ADAM_EPSILON,
        "optim": "adamw",
        "max_grad_norm": CLIPPED_AT if real.config.max_grad_norm else 0.0,
    }
    values |= {name: 0.0 for name in _DROPOUTS if getattr(real.config, name)}
    return values


_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "lora_dropout")
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)
_COMPARED = (
    "max_seq_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "no_recompute_layers",
    "learning_rate",
    "lr_scheduler_type",
    "adam_epsilon",
    "max_grad_norm",
    "optim",
    *_DROPOUTS,
    "continue_training",
    "max_length",
    "freeze_layers",
    "lora_alpha",
    *_SMALL_METHODS,
)


def _changes(real: Resolved, configs: list[Resolved], model: SmallModel) -> list[Change]:
    assert real.facts is not None
    rows = [("layout", str(real.layout), _joined(one.layout for one in configs))]
    rows += [(name, str(getattr(real.facts, name)), str(getattr(model.facts, name))) for name in _SIZES]
    known = fields_of(real.entry)
    for name in (*(name for name in _COMPARED if name in known), *_not_honoured(configs)):
        requested = real.requested.get(name, getattr(real.config, name))
        rows.append((name, _shown(requested), _joined(_shown(getattr(one.config, name)) for one in configs)))
    rows += [(key, str(value), "0") for key, value in real.facts.raw.items() if "dropout" in key and value]
    return [Change(*row) for row in rows if row[1] != row[2]]


def _not_honoured(configs: list[Resolved]) -> list[str]:
    """Return fields that a CPU does not honour: the results are the same without them, or those of float32."""
    names = [name for one in configs for name, origin in one.origins.items() if origin == UNSUPPORTED]
    return [name for name in dict.fromkeys(names) if name not in _COMPARED]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _joined(values: Any) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
