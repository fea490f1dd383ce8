"""The one table of names that PaddleNLP's commands had since 2023, and what they are called here.

Four generations of PaddleNLP are meant: A (April 2023, 2.5), B (June 2023, 2.6rc), C (2.6 to 2.8), D (3.0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from paddle_llm.config.arguments import BARE, Given
from paddle_llm.config.not_offered import NOT_OFFERED, Refused, Stale, is_neutral

Entry = Literal["pretrain", "finetune"]
SCRIPTS: dict[str, str] = {"pretrain": "run_pretrain.py", "finetune": "finetune_generation.py"}


@dataclass(frozen=True)
class Renamed:
    """The same thing under a new name.

    Attributes:
        new: the field.
        convert: old value -> new value; None as a result drops the key (it asked for the default).
        plus: the new value is the sum of this one and that of the field named here.
        finetune_only: the pretraining script has no use for it.
    """

    new: str
    convert: Callable[[Any], Any] | None = None
    plus: str = ""
    finetune_only: bool = False


def _no_cuda(raw: Any) -> Any:
    return None if is_neutral(raw, (False,)) else "cpu"


def _positive(raw: Any) -> Any:
    return None if is_neutral(raw, (-1, 0)) else raw


OLD_NAMES: dict[str, Renamed | Stale | Refused] = {
    # --- both scripts
    "sharding_degree": Renamed("sharding_parallel_degree"),  # A to D, deprecated since B
    "no_cuda": Renamed("device", convert=_no_cuda),  # A to D
    "max_evaluate_steps": Renamed("eval_iters", convert=_positive),  # C, D
    "benchmark": Stale("give --max_steps for a short run", (False,)),  # B, C
    "profiler_options": Stale("profiling is not part of training", ("",)),  # B
    # --- run_pretrain.py, A to C
    "config_name": Refused("put the config.json into the folder of --model_name_or_path"),
    "skip_warmup": Stale("a memory map is never read through beforehand", (True, False)),
    "initializer_range": Stale("PaddleNLP never read it; set it in the model's config.json"),
    # --- fine-tuning, A and B
    "r": Renamed("lora_rank", finetune_only=True),
    "tgt_length": Renamed("max_length", plus="src_length", finetune_only=True),
    "task_path": Renamed("dataset_name_or_path", finetune_only=True),
    "task_name_or_path": Renamed("dataset_name_or_path", finetune_only=True),
    "dataset_path": Renamed("dataset_name_or_path", finetune_only=True),
    "data_name": Renamed("dataset_name_or_path", finetune_only=True),
    "do_generation": Renamed("eval_with_do_generation", finetune_only=True),
    "qat": Renamed("do_qat", finetune_only=True),
    "qat_type": Renamed("quant_type", finetune_only=True),
    # --- fine-tuning, early C
    "intokens": Renamed("zero_padding", finetune_only=True),
}

# Names that finetune_generation.py knows, of any generation, beside the fields that both scripts share.
FINETUNE_NAMES: frozenset[str] = frozenset(
    [
        "dataset_name_or_path",
        "task_name",
        "src_length",
        "max_length",
        "zero_padding",
        "greedy_zero_padding",
        "pad_to_multiple_of",
        "pad_to_max_length",
        "autoregressive",
        "use_pose_convert",
        "lazy",
        "chat_template",
        "eval_with_do_generation",
        "save_generation_output",
        "instruction_generation",
        "merge_weights",
        "label_smoothing",
        "lr_decay_ratio",
        "min_tgt_length",
        "length_penalty",
        "no_repeat_ngram_size",
        "num_beams",
        "select_topk",
        "top_k",
        "top_p",
        "temperature",
        "generate_num",
        "lora",
        "lora_path",
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "trainable_modules",
        "use_quick_lora",
        "rslora",
        "lora_plus_scale",
        "pissa",
        "lora_use_mixer",
        "use_mora",
        "vera",
        "vera_rank",
        "lokr",
        "lokr_path",
        "lokr_dim",
        "prefix_tuning",
        "prefix_path",
        "num_prefix_tokens",
        "prefix_projection",
        "reft",
        "layers",
        "position",
        "intervention_type",
        "rank",
        "act_fn",
        "add_bias",
        "dropout",
        "weight_quantize_algo",
        "weight_blocksize",
        "weight_double_quant",
        "weight_double_quant_block_size",
        "quant_type",
        "do_qat",
        "do_ptq",
        "ptq_step",
        "shift",
        "shift_all_linears",
        "shift_sampler",
        "shift_step",
        "smooth",
        "smooth_all_linears",
        "smooth_sampler",
        "smooth_step",
        "smooth_piecewise_search",
        "smooth_k_piece",
        "smooth_search_piece",
        "do_gptq",
        "gptq_step",
        "neftune",
        "neftune_noise_alpha",
        "flash_mask",
        "use_ssa",
        "ssa_group_size_ratio",
    ]
)

KNOWN_NAMES: frozenset[str] = frozenset(OLD_NAMES) | frozenset(NOT_OFFERED) | FINETUNE_NAMES


@dataclass
class Translated:
    """What is left after old names: keys under today's names, and what there is to say."""

    given: list[Given] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def translate(given: list[Given], entry: Entry, fields: frozenset[str] | set[str]) -> Translated:
    """Read old names as today's. Keys that are neither a field nor known are passed on as they are.

    Args:
        given: in order of precedence, the strongest last.
        entry: the script that runs.
        fields: names of that script's config.
    """
    result = Translated()
    values = {one.name: one.raw for one in given}
    for one in given:
        rule = None if one.name in fields else OLD_NAMES.get(one.name) or NOT_OFFERED.get(one.name)
        if _belongs_elsewhere(one.name, rule, entry, fields):
            other = SCRIPTS["finetune" if entry == "pretrain" else "pretrain"]
            result.problems.append(f"{one.spelled()} belongs to {other}, not to {SCRIPTS[entry]}: remove it here.")
        elif isinstance(rule, Renamed):
            _rename(one, rule, values, result)
        elif isinstance(rule, Stale):
            if not is_neutral(_plain(one.raw), rule.neutral):
                result.notices.append(f"{one.spelled()} has no effect: {rule.why}.")
        elif isinstance(rule, Refused):
            if not is_neutral(_plain(one.raw), rule.neutral):
                result.problems.append(f"{one.spelled()} = {_shown(one.raw)} is not offered: {rule.why}.")
        else:
            result.given.append(one)
    return result


def _belongs_elsewhere(name: str, rule: object, entry: Entry, fields: frozenset[str] | set[str]) -> bool:
    if entry != "pretrain" or name in fields:
        return False
    return name in FINETUNE_NAMES or (isinstance(rule, Renamed) and rule.finetune_only)


def _rename(one: Given, rule: Renamed, values: dict[str, Any], result: Translated) -> None:
    raw = one.raw
    if rule.convert is not None:
        raw = rule.convert(_plain(raw))
        if raw is None:
            return
    if rule.plus:
        try:
            raw = int(raw) + int(values[rule.plus])
        except KeyError:
            result.problems.append(
                f"{one.spelled()} is counted with --{rule.plus}, which is missing: give it, or {rule.new}."
            )
            return
        except (TypeError, ValueError):
            result.problems.append(f"{one.spelled()} = {_shown(one.raw)}: expected a whole number.")
            return
    result.given.append(replace(one, name=rule.new, raw=raw, old=one.name))
    if one.is_flag:
        result.notices.append(f"--{one.name} {_shown(one.raw)} is read as --{rule.new} {_shown(raw)}")
    else:
        result.notices.append(f'{one.spelled()}: {_shown(one.raw)} is read as "{rule.new}": {_shown(raw)}')


def _plain(raw: Any) -> Any:
    return True if raw is BARE else raw


def _shown(raw: Any) -> str:
    return " ".join(map(str, raw)) if isinstance(raw, list) else str(raw).lower() if isinstance(raw, bool) else str(raw)
