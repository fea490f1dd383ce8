"""Defaults that fine-tuning has of its own, some of them by method; each with its reason, for config.resolved.json and the README."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from paddle_llm.config.method_choice import chosen
from paddle_llm.config.model_facts import ModelFacts
from paddle_llm.config.run_config import RunConfig


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
