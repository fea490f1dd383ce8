"""Defaults."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

from paddle_llm.config.device import adapt_to_cpu
from paddle_llm.config.layout import Layout
from paddle_llm.config.methods import chosen
from paddle_llm.config.paddle_switches import words_at_work
from paddle_llm.config.rules.engine import Run
from paddle_llm.config.run_config import SCORES, RunConfig
from paddle_llm.families import FAMILIES
from paddle_llm.families.facts import ModelFacts


class Default(NamedTuple):
    value: Any
    why: str


# What each method is trained with where it was published or is used most.
LEARNING_RATES: dict[str, Default] = {
    "full": Default(2e-5, "Alpaca, and LLaMA-2 (Touvron et al. 2023); 1e-5 to 3e-5 is usual"),
    "freeze": Default(2e-5, "as with all weights"),
    "lora": Default(2e-4, "Hu et al. 2021 for GPT-3, Dettmers et al. 2023 up to 13B; Alpaca-LoRA takes 3e-4"),
    "adalora": Default(5e-4, "the least of Zhang et al. 2023, who take up to 2e-3"),
    "prefix": Default(3e-2, "PaddleNLP; ChatGLM-6B's P-Tuning v2 takes 2e-2"),
    "prefix with projection": Default(5e-5, "Li and Liang 2021, who train through a projection"),
    "adapter": Default(3e-4, "the middle of what Houlsby et al. 2019 search, 3e-5 to 3e-3"),
    "prompt": Default(3e-2, "as for a prefix; the 0.3 of Lester et al. 2021 is for Adafactor"),
}
_FIXED: dict[str, Default] = {
    "continue_training": Default(True, "a model is tuned, not made"),
    "num_train_epochs": Default(3.0, "Alpaca"),
    "adam_beta2": Default(0.999, "AdamW's own: fine-tuning is short of steps, not of stability"),
}
_WARMUP = Default(0.03, "Alpaca")


def entry_defaults(entry: str, written: Mapping[str, Any]) -> dict[str, Default]:
    """Defaults of `entry` that differ from the fields' own.

    Args:
        written: field -> value of what somebody set.
    """
    if entry != "finetune":
        return {}
    found = {**_FIXED, "learning_rate": LEARNING_RATES[_rate_of(written)]}
    if "warmup_steps" not in written and written.get("lr_scheduler_type") != "constant":
        found["warmup_ratio"] = _WARMUP
    length = written.get("max_length", RunConfig.model_fields["max_length"].default)
    found["max_seq_length"] = Default(length, "max_length")
    found |= _when(written)
    return {name: default for name, default in found.items() if name not in written}


def _rate_of(written: Mapping[str, Any]) -> str:
    methods = list(chosen(written)) or ["full"]
    return "prefix with projection" if methods[0] == "prefix" and written.get("prefix_projection") else methods[0]


def _when(written: Mapping[str, Any]) -> dict[str, Default]:
    """When to evaluate and to save: by epochs, unless steps are spoken of."""
    found: dict[str, Default] = {}
    evaluates = written.get("evaluation_strategy")
    if evaluates is None and written.get("do_eval"):
        evaluates = "steps" if "eval_steps" in written else "epoch"
        why = "eval_steps is given" if evaluates == "steps" else "data of fine-tuning are small"
        found["evaluation_strategy"] = Default(evaluates, why)
    if "save_steps" in written:
        return found | {"save_strategy": Default("steps", "save_steps is given")}
    if (
        written.get("load_best_model_at_end")
        and evaluates == "steps"
        and written.get("save_strategy", "steps") == "steps"
    ):
        steps = written.get("eval_steps", RunConfig.model_fields["eval_steps"].default)
        found["save_steps"] = Default(steps, "eval_steps, so that every model that is evaluated is saved")
        return found | {"save_strategy": Default("steps", "evaluation_strategy")}
    return found | {"save_strategy": Default("epoch", "data of fine-tuning are small")}


def fitting_length(config: RunConfig, asked: Container[str], facts: ModelFacts | None) -> dict[str, Default]:
    """The lengths of fine-tuning's samples and rows, where nobody gave them, for a model of fewer positions than they need."""
    limit = facts.position_limit if facts else None
    if limit is None or "max_length" in asked:
        return {}
    room = limit - (config.num_prompt_tokens if config.prompt_tuning else 0)
    if not 2 <= room < config.max_length:
        return {}
    why = f"the model's {limit} positions"
    lengths = ["max_length", *(["max_seq_length"] if "max_seq_length" not in asked else [])]
    return {name: Default(room, why) for name in lengths}


FUSED_WHY = "on a CPU, if the model has an RMSNorm"


def fuses_rms_norm(device: str, facts: ModelFacts) -> bool:
    """`--use_fused_rms_norm` where it is absent: on a CPU a step takes 2 to 5% less with it."""
    family = FAMILIES.get(facts.model_type)
    return device == "cpu" and family is not None and family.capabilities.fused_rms_norm


def derive(run: Run) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Values to set, the origin of each, and lines to say. `run` has no problems."""
    updates: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value, why in _follows(run):
        if getattr(run.config, name) != value:
            updates[name], origins[name] = value, f"derived: {why}"
    if run.device != "cpu":
        return updates, origins, []
    adapted = adapt_to_cpu(run.config.model_copy(update=updates))
    for name, value in adapted.updates.items():
        updates[name], origins[name] = value, "not honoured on the CPU"
    return updates, origins, adapted.notices


def _follows(run: Run) -> list[tuple[str, Any, str]]:
    config, layout = run.config, run.layout
    found: list[tuple[str, Any, str]] = [
        ("device", run.device, "the best there is" if config.device is None else "checked for this device"),
        ("tensor_parallel_degree", layout.tensor, "the layout"),
        ("pipeline_parallel_degree", layout.pipeline, "the layout"),
        ("sharding_parallel_degree", layout.sharding, "the layout"),
        ("data_parallel_degree", layout.data, "the layout"),
    ]
    found += [(name, words, "words without effect left out") for name, words in words_at_work(config, layout).items()]
    if layout.sharding_stage == 0:
        found.append(("sharding", "", "nothing to shard in this layout"))
    if config.sharding_offload and run.device == "gpu":
        found.append(("offload_optim", True, f"--sharding {config.sharding}"))
    if config.min_learning_rate is None and config.lr_decay_ratio is not None:
        found.append(("min_learning_rate", config.learning_rate * config.lr_decay_ratio, "lr_decay_ratio"))
    elif config.min_learning_rate is None:
        found.append(("min_learning_rate", config.learning_rate / 10, "a tenth of learning_rate"))
    if config.tokenizer_name_or_path is None:
        found.append(("tokenizer_name_or_path", config.model_name_or_path, "model_name_or_path"))
    if run.folder is not None:
        found.append(("model_name_or_path", str(run.folder), f"where {config.model_name_or_path} is on this machine"))
    if config.use_fused_rms_norm is None and run.known_facts is not None:
        found.append(("use_fused_rms_norm", fuses_rms_norm(run.device, run.known_facts), FUSED_WHY))
    if config.data_seed is None:
        found.append(("data_seed", config.seed, "seed"))
    if config.decay_steps is None and config.max_steps > 0:
        found.append(("decay_steps", config.max_steps, "max_steps"))
    if run.known_facts is not None:
        found.append(("model_type", run.known_facts.model_type, "the model's config.json"))
    if config.metric_for_best_model == "accuracy":
        found.append(("metric_for_best_model", "loss", "accuracy is not measured"))
    if config.load_best_model_at_end and config.greater_is_better is None:
        # PaddleNLP takes every metric but the loss for one of which more is better; a perplexity is not.
        scored = (config.metric_for_best_model or "loss").removeprefix("eval_") in SCORES
        found.append(("greater_is_better", scored, f"{'more' if scored else 'less'} of this metric is better"))
    if config.evaluation_strategy is None:
        found.append(("evaluation_strategy", "steps" if config.do_eval else "no", "do_eval"))
    elif config.evaluation_strategy != "no":
        found.append(("do_eval", True, "evaluation_strategy"))
    if layout.pipeline > 1:
        batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
        found.append(("per_device_eval_batch_size", batch, "a pipeline evaluates the micro batches that it trains"))
    return found + (list(_follows_in_finetuning(config, layout)) if run.entry == "finetune" else [])


def _follows_in_finetuning(config: RunConfig, layout: Layout) -> Iterator[tuple[str, Any, str]]:
    if config.dataset_name_or_path is None:
        yield "dataset_name_or_path", "data", "where PaddleNLP's first scripts looked"
    if config.src_length is None:
        yield "src_length", config.max_length - 1, "all but one token of max_length"
    if config.generation_max_new_tokens is None and config.src_length is not None:
        yield "generation_max_new_tokens", config.max_length - config.src_length, "what src_length leaves of max_length"
    elif config.generation_max_new_tokens is None:
        yield "generation_max_new_tokens", min(256, config.max_length), "src_length is not given"
    if layout.pipeline > 1:
        yield "pad_to_max_length", True, "stages of a pipeline expect one shape"
    if config.sequence_parallel and config.pad_to_multiple_of is None:
        yield "pad_to_multiple_of", layout.tensor, "rows are split over the tensor parallel ranks"
    if config.lora_alpha is None and (config.lora or config.adalora):
        yield "lora_alpha", 2.0 * config.lora_rank, "twice lora_rank"
    if config.adalora and config.adalora_init_rank is None:
        yield "adalora_init_rank", -(-3 * config.lora_rank // 2), "1.5 times lora_rank"
