"""Values that the user did not give.

There are three kinds, each with one home:

- A *field default* applies if nothing else does. It is declared with the field in `config/fields/`. Use it for a constant that suits
  both scripts.
- An *entry default* replaces a field default in fine-tuning; it may depend on the method and on other given fields
  (`entry_defaults`, `fitting_length`). It is set before the rules run, so that rules see it. Each has a reason, which
  config.resolved.json and docs/reference/flags.md show.
- A *derived value* follows from the checked config, its layout, the model and the device (`derive`). It is set after the rules have
  passed, so that rules never see it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

from paddle_llm.config.device import UNSUPPORTED, adapt_to_cpu
from paddle_llm.config.layout import Layout
from paddle_llm.config.methods import chosen
from paddle_llm.config.paddle_switches import active_switches
from paddle_llm.config.rules.engine import Run
from paddle_llm.config.run_config import SCORES, RunConfig
from paddle_llm.families import FAMILIES
from paddle_llm.families.facts import ModelFacts


class Default(NamedTuple):
    """A default value and the reason for it."""

    value: Any
    why: str


# Learning rates from the publication of each method, or from its most common implementation.
LEARNING_RATES: dict[str, Default] = {
    "full": Default(2e-5, "Alpaca, and LLaMA-2 (Touvron et al. 2023); 1e-5 to 3e-5 is usual"),
    "freeze": Default(2e-5, "as for full fine-tuning"),
    "lora": Default(2e-4, "Hu et al. 2021 for GPT-3, Dettmers et al. 2023 up to 13B; Alpaca-LoRA uses 3e-4"),
    "adalora": Default(5e-4, "the lowest of Zhang et al. 2023, who use up to 2e-3"),
    "prefix": Default(3e-2, "PaddleNLP; ChatGLM-6B's P-Tuning v2 uses 2e-2"),
    "prefix with projection": Default(5e-5, "Li and Liang 2021, who train through a projection"),
    "adapter": Default(3e-4, "the middle of what Houlsby et al. 2019 search, 3e-5 to 3e-3"),
    "prompt": Default(3e-2, "as for a prefix; the 0.3 of Lester et al. 2021 is for Adafactor"),
}
_FIXED: dict[str, Default] = {
    "continue_training": Default(True, "fine-tuning starts from trained weights"),
    "num_train_epochs": Default(3.0, "Alpaca"),
    "adam_beta2": Default(0.999, "the default of AdamW: fine-tuning has few steps and is stable"),
}
_WARMUP = Default(0.03, "Alpaca")


def entry_defaults(entry: str, written: Mapping[str, Any]) -> dict[str, Default]:
    """Return the defaults of `entry` that differ from the field defaults.

    Args:
        entry: "pretrain" or "finetune".
        written: Value of each field that the user set.
    """
    if entry != "finetune":
        return {}
    found = {**_FIXED, "learning_rate": LEARNING_RATES[_learning_rate_key(written)]}
    if "warmup_steps" not in written and written.get("lr_scheduler_type") != "constant":
        found["warmup_ratio"] = _WARMUP
    length = written.get("max_length", RunConfig.model_fields["max_length"].default)
    found["max_seq_length"] = Default(length, "max_length")
    found |= _evaluation_and_saving(written)
    return {name: default for name, default in found.items() if name not in written}


def _learning_rate_key(written: Mapping[str, Any]) -> str:
    """Return the key of LEARNING_RATES for the chosen method."""
    methods = list(chosen(written)) or ["full"]
    return "prefix with projection" if methods[0] == "prefix" and written.get("prefix_projection") else methods[0]


def _evaluation_and_saving(written: Mapping[str, Any]) -> dict[str, Default]:
    """Return the defaults of evaluation and saving: every epoch, unless a number of steps is given."""
    found: dict[str, Default] = {}
    evaluates = written.get("evaluation_strategy")
    if evaluates is None and written.get("do_eval"):
        evaluates = "steps" if "eval_steps" in written else "epoch"
        why = "eval_steps is given" if evaluates == "steps" else "fine-tuning data sets are small"
        found["evaluation_strategy"] = Default(evaluates, why)
    if "save_steps" in written:
        return found | {"save_strategy": Default("steps", "save_steps is given")}
    if (
        written.get("load_best_model_at_end")
        and evaluates == "steps"
        and written.get("save_strategy", "steps") == "steps"
    ):
        steps = written.get("eval_steps", RunConfig.model_fields["eval_steps"].default)
        found["save_steps"] = Default(steps, "eval_steps, so that every evaluated model is saved")
        return found | {"save_strategy": Default("steps", "evaluation_strategy")}
    return found | {"save_strategy": Default("epoch", "fine-tuning data sets are small")}


def fitting_length(config: RunConfig, requested: Container[str], facts: ModelFacts | None) -> dict[str, Default]:
    """Return shorter lengths of samples and rows for a model with fewer positions than the default lengths.

    Args:
        config: Config of fine-tuning.
        requested: Names of the fields that the user set; they are not changed.
        facts: Shape of the model; None if it is not known.
    """
    limit = facts.position_limit if facts else None
    if limit is None or "max_length" in requested:
        return {}
    available = limit - (config.num_prompt_tokens if config.prompt_tuning else 0)
    if not 2 <= available < config.max_length:
        return {}
    why = f"the model's {limit} positions"
    lengths = ["max_length", *(["max_seq_length"] if "max_seq_length" not in requested else [])]
    return {name: Default(available, why) for name in lengths}


FUSED_WHY = "on a CPU, for models with RMSNorm"


def fuses_rms_norm(device: str, facts: ModelFacts) -> bool:
    """Return the value of `use_fused_rms_norm` if it is not given: on a CPU, it makes a step 2 to 5% faster."""
    family = FAMILIES.get(facts.model_type)
    return device == "cpu" and family is not None and family.capabilities.fused_rms_norm


def derive(run: Run) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Derive values from a run without problems.

    Returns:
        New value by field; origin of each, for config.resolved.json; notices.
    """
    updates: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value, why in _derived(run):
        if getattr(run.config, name) != value:
            updates[name], origins[name] = value, f"derived: {why}"
    if run.device != "cpu":
        return updates, origins, []
    adapted = adapt_to_cpu(run.config.model_copy(update=updates))
    for name, value in adapted.updates.items():
        updates[name], origins[name] = value, UNSUPPORTED
    return updates, origins, adapted.notices


def _derived(run: Run) -> Iterator[tuple[str, Any, str]]:
    """Yield field, value and reason."""
    yield from _derived_layout(run)
    yield from _derived_model(run)
    yield from _derived_schedule(run.config)
    yield from _derived_evaluation(run.config, run.layout)
    if run.entry == "finetune":
        yield from _derived_in_finetuning(run.config, run.layout)


def _derived_layout(run: Run) -> Iterator[tuple[str, Any, str]]:
    config, layout = run.config, run.layout
    yield "device", run.device, "the best available" if config.device is None else "checked for this device"
    yield "tensor_parallel_degree", layout.tensor, "the layout"
    yield "pipeline_parallel_degree", layout.pipeline, "the layout"
    yield "sharding_parallel_degree", layout.sharding, "the layout"
    yield "data_parallel_degree", layout.data, "the layout"
    for name, switches in active_switches(config, layout).items():
        yield name, switches, "switches without effect dropped"
    if layout.sharding_stage == 0:
        yield "sharding", "", "nothing to shard in this layout"
    if config.sharding_offload and run.device == "gpu":
        yield "offload_optim", True, f"--sharding {config.sharding}"


def _derived_model(run: Run) -> Iterator[tuple[str, Any, str]]:
    config = run.config
    if config.tokenizer_name_or_path is None:
        yield "tokenizer_name_or_path", config.model_name_or_path, "model_name_or_path"
    if run.folder is not None:
        yield "model_name_or_path", str(run.folder), f"local folder of {config.model_name_or_path}"
    if config.use_fused_rms_norm is None and run.known_facts is not None:
        yield "use_fused_rms_norm", fuses_rms_norm(run.device, run.known_facts), FUSED_WHY
    if run.known_facts is not None:
        yield "model_type", run.known_facts.model_type, "the model's config.json"


def _derived_schedule(config: RunConfig) -> Iterator[tuple[str, Any, str]]:
    if config.min_learning_rate is None and config.lr_decay_ratio is not None:
        yield "min_learning_rate", config.learning_rate * config.lr_decay_ratio, "lr_decay_ratio"
    elif config.min_learning_rate is None:
        yield "min_learning_rate", config.learning_rate / 10, "a tenth of learning_rate"
    if config.data_seed is None:
        yield "data_seed", config.seed, "seed"
    if config.decay_steps is None and config.max_steps > 0:
        yield "decay_steps", config.max_steps, "max_steps"


def _derived_evaluation(config: RunConfig, layout: Layout) -> Iterator[tuple[str, Any, str]]:
    if config.metric_for_best_model == "accuracy":
        yield "metric_for_best_model", "loss", "accuracy is not measured"
    if config.load_best_model_at_end and config.greater_is_better is None:
        # PaddleNLP assumes that greater is better for every metric but the loss, also for perplexity.
        is_score = (config.metric_for_best_model or "loss").removeprefix("eval_") in SCORES
        direction = "greater" if is_score else "smaller"
        yield "greater_is_better", is_score, f"a {direction} value of this metric is better"
    if config.evaluation_strategy is None:
        yield "evaluation_strategy", "steps" if config.do_eval else "no", "do_eval"
    elif config.evaluation_strategy != "no":
        yield "do_eval", True, "evaluation_strategy"
    if layout.pipeline > 1:
        batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
        yield "per_device_eval_batch_size", batch, "a pipeline evaluates with the micro-batches of training"


def _derived_in_finetuning(config: RunConfig, layout: Layout) -> Iterator[tuple[str, Any, str]]:
    if config.dataset_name_or_path is None:
        yield "dataset_name_or_path", "data", "the folder of PaddleNLP's first scripts"
    if config.src_length is None:
        yield "src_length", config.max_length - 1, "all but one token of max_length"
    if config.generation_max_new_tokens is None and config.src_length is not None:
        yield "generation_max_new_tokens", config.max_length - config.src_length, "max_length - src_length"
    elif config.generation_max_new_tokens is None:
        yield "generation_max_new_tokens", min(256, config.max_length), "src_length is not given"
    if layout.pipeline > 1:
        yield "pad_to_max_length", True, "pipeline stages expect one shape"
    if config.sequence_parallel and config.pad_to_multiple_of is None:
        yield "pad_to_multiple_of", layout.tensor, "rows are split over the tensor parallel ranks"
    if config.lora_alpha is None and (config.lora or config.adalora):
        yield "lora_alpha", 2.0 * config.lora_rank, "twice lora_rank"
    if config.adalora and config.adalora_init_rank is None:
        yield "adalora_init_rank", -(-3 * config.lora_rank // 2), "1.5 times lora_rank"
