"""What follows from a config, its layout and its device: the values that are absent in what was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from paddle_llm.config.device import adapt_to_cpu
from paddle_llm.config.families import ABILITIES
from paddle_llm.config.layout import Layout
from paddle_llm.config.model_facts import ModelFacts
from paddle_llm.config.paddle_switches import words_at_work
from paddle_llm.config.rules.engine import Run
from paddle_llm.config.run_config import SCORES, RunConfig

FUSED_WHY = "on a CPU, if the model has an RMSNorm"


def fuses_rms_norm(device: str, facts: ModelFacts) -> bool:
    """`--use_fused_rms_norm` where it is absent: on a CPU a step takes 2 to 5% less with it."""
    return device == "cpu" and facts.model_type in ABILITIES and ABILITIES[facts.model_type].fused_rms_norm


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
