"""From a folder's config.json to PaddleNLP's configuration of the model, with this run's switches.

Translates Hugging Face's spellings (also `rope_parameters` of transformers 5) and refuses what PaddleNLP's models cannot
express, where PaddleNLP itself would train something else in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.models.configuration.known_fields import is_above_zero, quantization_of, refused_fields
from paddle_llm.models.registry import Family

# Keys of config.json that say nothing about the network, or that PaddleNLP sets itself.
_DROPPED = {
    "_name_or_path",
    "auto_map",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "paddlenlp_version",
    "quantization_config",
    "transformers_weights",
    "tensor_parallel_degree",
    "tensor_parallel_rank",
    "tensor_parallel_output",
    "head_dim",
}


def translate(family: Family, raw: dict[str, Any], where: str) -> dict[str, Any]:
    """Keyword arguments of PaddleNLP's configuration class.

    Args:
        raw: what config.json says.
        where: the folder, for messages.

    Raises:
        UserError: naming everything that PaddleNLP's model of this family cannot express.
    """
    values = {key: value for key, value in raw.items() if key not in _DROPPED}
    problems: list[str] = []
    quantization = quantization_of(raw)
    if quantization:
        problems.append(f"the weights are quantized ({quantization}); use a folder with full-precision weights")
    problems += refused_fields(raw)
    _TRANSLATORS[family.name](values, raw, problems)
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(f"{where}/config.json describes a {family.title} that PaddleNLP cannot express:{lines}")
    values["architectures"] = [family.model_class.split(":")[1]]
    values.pop("model_type", None)
    return values


def _rename(values: dict[str, Any], names: dict[str, str]) -> None:
    """Move values to PaddleNLP's names.

    Raises:
        UserError: If both names are present with different values.
    """
    for old, new in names.items():
        if old in values:
            value = values.pop(old)
            if values.setdefault(new, value) != value:
                raise UserError(f"config.json: {old} {value!r} contradicts {new} {values[new]!r}. Remove one of them.")


def _expect(raw: dict[str, Any], problems: list[str], **wanted: Any) -> None:
    """A key may be absent or have one of the wanted values; null counts as false where false is wanted, as in Python."""
    for key, value in wanted.items():
        allowed = value if isinstance(value, tuple) else (value,)
        found = raw.get(key, allowed[0])
        if found not in allowed and not (found is None and not allowed[0]):
            problems.append(f"{key} {raw[key]!r} (only {' or '.join(map(repr, allowed))})")


def _llama(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    _rename(values, {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"})
    _rename(values, {"n_inner": "intermediate_size", "n_positions": "max_position_embeddings"})
    _rename(values, {"activation_function": "hidden_act"})
    _expect(raw, problems, hidden_act=("silu", "swish"), attention_bias=False, mlp_bias=False)
    _expect(raw, problems, attention_dropout=(0.0, 0, None))
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    head = raw.get("head_dim")
    if head is not None and hidden is not None and heads and head * heads != hidden:
        problems.append(f"head_dim {head} with hidden_size {hidden} and {heads} heads (only hidden_size / heads)")
    _rope(values, raw, problems)


def _rope(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    """`rope_theta` with `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5) -> PaddleNLP's keys."""
    new, old = values.pop("rope_parameters", None), values.pop("rope_scaling", None)
    parameters = new or old or {}
    if any(not isinstance(one, dict) for one in (new, old) if one):
        problems.append(f"rope parameters {parameters!r} (an object is expected)")
        return
    if new and old and _kind_of_rope(new) != _kind_of_rope(old):
        problems.append(f"rope_parameters {new!r} beside rope_scaling {old!r} (keep one of them)")
    named = {parameters[key] for key in ("rope_type", "type") if isinstance(parameters.get(key), str)}
    if len(named) > 1:  # transformers takes one or the other, depending on the network and its version
        problems.append(
            f"RoPE with rope_type {parameters['rope_type']!r} beside type {parameters['type']!r} (keep one)"
        )
    _rope_theta(values, parameters, problems)
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(f"partial_rotary_factor {parameters['partial_rotary_factor']!r} (only 1.0)")
    kind = _kind_of_rope(parameters)
    unknown = sorted(set(parameters) - _ROPE_FIELDS.get(kind, set(parameters)) - _ROPE_FIELDS["default"])
    if unknown:
        problems.append(f"RoPE of type {kind!r} with {', '.join(unknown)}, which is not known")
    if kind in ("linear", "dynamic"):
        values["rope_scaling_type"] = {"linear": "linear", "dynamic": "dynamic_ntk"}[kind]
        values["rope_scaling_factor"] = parameters.get("factor")
        if type(parameters.get("factor")) not in (int, float) or parameters["factor"] < 1:
            problems.append(f"RoPE of type {kind!r} with factor {parameters.get('factor')!r} (a number of at least 1)")
        original = parameters.get("original_max_position_embeddings")
        if kind == "dynamic" and original not in (None, raw.get("max_position_embeddings")):
            problems.append(f"RoPE of type 'dynamic' with original_max_position_embeddings {original!r}")
    elif kind == "llama3":
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        missing = [key for key in keys if key not in parameters]
        if missing:
            problems.append(f"RoPE of type llama3 without {', '.join(missing)}")
        wrong = [key for key in keys if key in parameters and not is_above_zero(parameters[key])]
        problems += [
            f"RoPE of type llama3 with {key} {parameters[key]!r} (a number above 0 is expected)" for key in wrong
        ]
        values["rope_scaling"] = {"rope_type": "llama3", **{key: parameters.get(key) for key in keys}}
    elif kind not in ("default", None):
        problems.append(f"RoPE of type {kind!r} (only default, linear, dynamic, llama3)")


def _rope_theta(values: dict[str, Any], parameters: dict[str, Any], problems: list[str]) -> None:
    """Take `rope_theta` from the RoPE parameters, where transformers 5 keeps it."""
    theta = parameters.get("rope_theta")
    if theta is None:
        return
    if not is_above_zero(theta):
        problems.append(f"rope_theta {theta!r} in the RoPE parameters (a number above 0 is expected)")
    elif values.setdefault("rope_theta", theta) != theta:  # transformers 4 reads one, transformers 5 the other
        problems.append(f"rope_theta {values['rope_theta']!r} beside {theta!r} in the RoPE parameters (keep one)")


# What an entry of each type may hold, beside what is in every one.
_ROPE_FIELDS: dict[str | None, set[str]] = {
    "default": {"rope_type", "type", "rope_theta", "partial_rotary_factor"},
    "linear": {"factor", "original_max_position_embeddings"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


def _kind_of_rope(parameters: dict[str, Any]) -> str:
    return str(parameters.get("rope_type", parameters.get("type")) or "default")


def _chatglm(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    _rename(values, {"num_layers": "num_hidden_layers"})
    _expect(raw, problems, position_encoding_2d=True, pre_seq_len=None, activation="gelu")


def _chatglm_v2(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    _rename(values, {"num_layers": "num_hidden_layers", "padded_vocab_size": "vocab_size"})
    _rename(values, {"seq_length": "max_sequence_length"})
    # PaddleNLP calls the same thing by group number only; without multi-query every head is its own group.
    if values.pop("multi_query_attention", True) is False:
        values["multi_query_group_num"] = values.get("num_attention_heads")
    _expect(raw, problems, rope_ratio=(1, 1.0), rmsnorm=True, post_layer_norm=True, original_rope=True)
    channels, heads, hidden = (values.get(key) for key in ("kv_channels", "num_attention_heads", "hidden_size"))
    if channels and heads and hidden and channels * heads != hidden:
        problems.append(
            f"kv_channels {channels} with hidden_size {hidden} and {heads} heads (only hidden_size / heads)"
        )


def _bloom(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    _expect(raw, problems, tie_word_embeddings=True)
    _rename(values, {"n_embed": "hidden_size", "n_embd": "hidden_size", "num_hidden_layers": "n_layer"})
    _rename(values, {"num_attention_heads": "n_head", "num_layers": "n_layer"})
    # Exactness across Megatron's old tensor-parallel slices: changes nothing but the order of a sum, and costs a lot.
    values.pop("slow_but_exact", None)
    values.pop("pretraining_tp", None)


def _opt(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    _rename(values, {"do_layer_norm_before": "normalize_before", "ffn_dim": "intermediate_size"})
    _rename(values, {"dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"})
    _rename(values, {"activation_function": "hidden_act", "init_std": "initializer_range"})
    values["word_embed_proj_dim"] = raw.get("word_embed_proj_dim") or values.get("hidden_size")
    values.pop("layerdrop", None)
    _expect(raw, problems, activation_function="relu", hidden_act="relu", layerdrop=(0.0, 0), enable_bias=True)
    _expect(raw, problems, layer_norm_elementwise_affine=True, tie_word_embeddings=True)
    if raw.get("_remove_final_layer_norm"):
        problems.append("_remove_final_layer_norm (OPT without its last norm)")


def _glm(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    _rename(values, {"num_hidden_layers": "num_layers"})
    _expect(raw, problems, relative_encoding=False, spell_length=None, tie_word_embeddings=True)
    values["output_predict"] = True  # else the network ends before its head


_QWEN2_KEY_VALUE_HEADS = 32  # the default of Qwen2Config, in transformers and in PaddleNLP


def _qwen2(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    _expect(raw, problems, hidden_act=("silu", "swish"), use_sliding_window=False, attention_dropout=(0.0, 0))
    if "num_key_value_heads" not in raw and values.get("num_attention_heads") != _QWEN2_KEY_VALUE_HEADS:
        problems.append(
            f"num_key_value_heads is absent, which means {_QWEN2_KEY_VALUE_HEADS} in transformers; write the number of the model"
        )
    kinds = raw.get("layer_types") or []
    windowed = sorted({str(one) for one in (kinds if isinstance(kinds, list) else [kinds])} - {"full_attention"})
    if windowed:
        problems.append(f"layer_types with {', '.join(windowed)} (only 'full_attention')")
    hidden, heads, head = values.get("hidden_size"), values.get("num_attention_heads"), raw.get("head_dim")
    if head is not None and hidden is not None and heads and head * heads != hidden:
        problems.append(f"head_dim {head} with hidden_size {hidden} and {heads} heads (only hidden_size / heads)")
    _rope(values, raw, problems)
    if values.pop("rope_scaling", None) or values.pop("rope_scaling_type", None):
        problems.append("scaled RoPE (PaddleNLP's Qwen2 leaves the scaling out without a word)")


_TRANSLATORS: dict[str, Callable[[dict[str, Any], dict[str, Any], list[str]], None]] = {
    "llama": _llama,
    "chatglm": _chatglm,
    "chatglm_v2": _chatglm_v2,
    "bloom": _bloom,
    "opt": _opt,
    "glm": _glm,
    "qwen2": _qwen2,
}
