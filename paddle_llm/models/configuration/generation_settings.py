"""Read `generation_config.json` (EOS ids and defaults of sampling) and write it beside saved weights.

Every `eos_token_id` of generation_config.json and of config.json ends a text, because newer models end a text and an
answer with different tokens. Defaults of sampling are reported but not applied: `generate` is greedy unless options are
given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paddle_llm.core.artifacts import GENERATION_CONFIG
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys that describe the file or another machine, or that do not change a text here.
_NEUTRAL = {
    *_IDS, "transformers_version", "paddlenlp_version", "_from_model_config", "_name_or_path", "use_cache", "trust_remote_code",
    "decoder_start_token_id", "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "cache_implementation", "cache_config", "return_legacy_cache", "num_return_sequences", "max_length", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "max_matching_ngram_size", "prefill_chunk_size", "disable_compile", "chat_format", "low_memory",
    "is_assistant", "assistant_confidence_threshold", "assistant_early_exit",
    "assistant_lookbehind", "target_lookbehind", "prompt_lookup_num_tokens", "max_window_size", "compile_config",
    "remove_invalid_values",
}  # fmt: skip
# Values at which a setting has no effect, in transformers 4.55 or PaddleNLP.
_OFF: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "decode_strategy": ("greedy_search",),
    "num_beams": (1,),
    "repetition_penalty": (1, 1.0),
    "length_penalty": (1, 1.0, 0, 0.0),
    "encoder_repetition_penalty": (1, 1.0),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "early_stopping": (False,),
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "encoder_no_repeat_ngram_size": (0,),
    "guidance_scale": (1, 1.0),
    "token_healing": (False,),
    "renormalize_logits": (False,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0, 0.0),
    "top_h": (None,),
    "exponential_decay_length_penalty": (None,),
}
_SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def read_generation(folder: Path) -> dict[str, Any]:
    """Return the settings of a model folder; {} if it has none.

    Raises:
        UserError: If the file is not a JSON object, or its ids are not token ids.
    """
    file = folder / GENERATION_CONFIG
    if not file.is_file():
        return {}
    settings = read_json_object(file)
    for name in _IDS:
        _token_ids(settings.get(name), f"{file}: {name}")
    return settings


def end_ids(settings: dict[str, Any], config: dict[str, Any], where: object) -> list[int]:
    """Return the ids that end a text, each once.

    Args:
        settings: Fields of generation_config.json.
        config: Fields of config.json.
        where: Folder, which messages name.

    Raises:
        UserError: If an entry is neither an id, a list of ids nor null.
    """
    name = "eos_token_id"
    ids = _token_ids(settings.get(name), f"{where}/{GENERATION_CONFIG}: {name}")
    return list(dict.fromkeys((*ids, *_token_ids(config.get(name), f"{where}/config.json: {name}"))))


def additional_eos_note(settings: dict[str, Any], ends: Iterable[int]) -> str | None:
    """Return a note about EOS ids that are not in generation_config.json, which transformers reads; None without any.

    Args:
        settings: Fields of generation_config.json.
        ends: All ids that end a text.
    """
    listed = _token_ids(settings.get("eos_token_id"), "eos_token_id")
    more = sorted(set(ends) - set(listed)) if listed else []
    if not more:
        return None
    theirs, ours = ", ".join(map(str, listed)), ", ".join(map(str, more))
    return f"{GENERATION_CONFIG} ends a text at token {theirs}; here it also ends at token {ours} (config.json or the tokenizer)"


def unreachable_eos_note(ends: Iterable[int], vocab_size: int) -> str | None:
    """Return a note about EOS ids that the model cannot generate; None without any.

    Args:
        ends: All ids that end a text.
        vocab_size: Size of the model's vocabulary.
    """
    beyond = sorted(number for number in ends if number >= vocab_size)
    if not beyond:
        return None
    named = ", ".join(map(str, beyond))
    return f"EOS ids outside the model's vocabulary of {vocab_size}, which it can never generate: {named}"


def _token_ids(value: Any, where: str) -> list[int]:
    found = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(number) is not int for number in found):
        raise UserError(f"{where} is {value!r}. Write a token id, a list of token ids, or null.")
    return [number for number in found if number >= 0]  # -1: no token, in older folders


def unapplied(settings: dict[str, Any], given: Iterable[str] = ()) -> dict[str, Any]:
    """Return the settings of the file that would change a text but that `generate` does not apply.

    Args:
        settings: Fields of generation_config.json.
        given: Names of settings that the user set.
    """
    samples = bool(settings.get("do_sample")) or settings.get("decode_strategy") == "sampling"
    skipped = {*_NEUTRAL, *given, *(() if samples else _SAMPLING_KEYS)}
    return {
        key: value
        for key, value in settings.items()
        if key not in skipped and value is not None and value not in _OFF.get(key, ()) and value != [] and value != {}
    }


def describe_unapplied(settings: dict[str, Any], given: Iterable[str], where: object) -> str | None:
    """Return a note about settings that are not applied; None without any.

    Args:
        settings: Fields of generation_config.json.
        given: Names of settings that the user set.
        where: Folder, which the note names.
    """
    found = unapplied(settings, given)
    if not found:
        return None
    listed = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in found.items())
    return f"{where}/{GENERATION_CONFIG}: not applied: {listed}. Greedy decoding is the default. To sample, set these options on the command line."


def settings_to_save(
    settings: dict[str, Any], config: dict[str, Any], stop_ids: Iterable[int], vocab_size: int
) -> dict[str, Any]:
    """Return the fields of generation_config.json beside weights that were trained from a folder.

    Args:
        settings: Fields of the folder's generation_config.json.
        config: Fields of its config.json.
        stop_ids: Ids that end a text in this training: the tokenizer's EOS and the stop tokens of the chat template.
        vocab_size: Size of the vocabulary; larger ids are omitted.
    """
    kept = {key: value for key, value in settings.items() if key not in ("_from_model_config", "_name_or_path", *_IDS)}
    for name in _IDS:
        ids = _token_ids(settings.get(name), name) or _token_ids(config.get(name), name)
        if name == "eos_token_id":
            ids = list(dict.fromkeys((*ids, *_token_ids(config.get(name), name), *stop_ids)))
        ids = [number for number in ids if number < vocab_size]
        if ids:
            kept[name] = ids if len(ids) > 1 and name == "eos_token_id" else ids[0]
    return kept


def write_generation(folder: Path, settings: dict[str, Any]) -> None:
    """Write generation_config.json to a folder; nothing if there are no settings.

    Args:
        folder: Folder of the weights.
        settings: Fields of the file.
    """
    if settings:
        text = json.dumps(settings, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
        (folder / GENERATION_CONFIG).write_text(text, encoding="utf-8")
