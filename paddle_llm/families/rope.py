"""Scaled rotary positions in a config.json: transformers 4 and 5 to PaddleNLP, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paddle_llm.core.errors import UserError
from paddle_llm.families.config_keys import is_above_zero

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig


def translate_rope(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    """Translate `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5) to PaddleNLP's keys."""
    new, old = values.pop("rope_parameters", None), values.pop("rope_scaling", None)
    parameters = new or old or {}
    if any(not isinstance(one, dict) for one in (new, old) if one):
        problems.append(f"RoPE parameters {parameters!r} (expected: an object)")
        return
    if new and old and _kind_of_rope(new) != _kind_of_rope(old):
        problems.append(f"rope_parameters = {new!r} contradicts rope_scaling = {old!r} (keep one of them)")
    named = {parameters[key] for key in ("rope_type", "type") if isinstance(parameters.get(key), str)}
    if len(named) > 1:  # transformers takes one or the other, depending on the network and its version
        problems.append(
            f"RoPE with rope_type = {parameters['rope_type']!r} contradicts type = {parameters['type']!r} (keep one of them)"
        )
    _rope_theta(values, parameters, problems)
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(f"partial_rotary_factor = {parameters['partial_rotary_factor']!r} (supported: 1.0)")
    kind = _kind_of_rope(parameters)
    unknown = sorted(set(parameters) - _ROPE_FIELDS.get(kind, set(parameters)) - _ROPE_FIELDS["default"])
    if unknown:
        problems.append(f"RoPE of type {kind!r} with unknown parameters: {', '.join(unknown)} (remove them)")
    if kind in ("linear", "dynamic"):
        values["rope_scaling_type"] = {"linear": "linear", "dynamic": "dynamic_ntk"}[kind]
        values["rope_scaling_factor"] = parameters.get("factor")
        if type(parameters.get("factor")) not in (int, float) or parameters["factor"] < 1:
            problems.append(
                f"RoPE of type {kind!r} with factor = {parameters.get('factor')!r} (expected: a number of at least 1)"
            )
        original = parameters.get("original_max_position_embeddings")
        if kind == "dynamic" and original not in (None, raw.get("max_position_embeddings")):
            problems.append(
                f"RoPE of type 'dynamic' with original_max_position_embeddings = {original!r} (supported: max_position_embeddings)"
            )
    elif kind == "llama3":
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        missing = [key for key in keys if key not in parameters]
        if missing:
            problems.append(f"RoPE of type 'llama3' without {', '.join(missing)} (add the parameters)")
        wrong = [key for key in keys if key in parameters and not is_above_zero(parameters[key])]
        problems += [
            f"RoPE of type 'llama3' with {key} = {parameters[key]!r} (expected: a number above 0)" for key in wrong
        ]
        values["rope_scaling"] = {"rope_type": "llama3", **{key: parameters.get(key) for key in keys}}
    elif kind not in ("default", None):
        problems.append(f"RoPE of type {kind!r} (supported: default, linear, dynamic, llama3)")


def _rope_theta(values: dict[str, Any], parameters: dict[str, Any], problems: list[str]) -> None:
    """Take `rope_theta` from the RoPE parameters, where transformers 5 keeps it."""
    theta = parameters.get("rope_theta")
    if theta is None:
        return
    if not is_above_zero(theta):
        problems.append(f"rope_theta = {theta!r} in the RoPE parameters (expected: a number above 0)")
    elif values.setdefault("rope_theta", theta) != theta:  # transformers 4 reads one, transformers 5 the other
        problems.append(
            f"rope_theta = {values['rope_theta']!r} contradicts {theta!r} in the RoPE parameters (keep one of them)"
        )


# Parameters by type; those of "default" are allowed in every type.
_ROPE_FIELDS: dict[str | None, set[str]] = {
    "default": {"rope_type", "type", "rope_theta", "partial_rotary_factor"},
    "linear": {"factor", "original_max_position_embeddings"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


def _kind_of_rope(parameters: dict[str, Any]) -> str:
    return str(parameters.get("rope_type", parameters.get("type")) or "default")


def written_rope(config: PretrainedConfig) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` of Hugging Face's config.json for a configuration of PaddleNLP.

    Raises:
        UserError: If Hugging Face's networks do not have this kind of scaling.
    """
    theta, factor = config.rope_theta, getattr(config, "rope_scaling_factor", 1.0)
    scaling = getattr(config, "rope_scaling", None)
    if scaling:
        return {"rope_theta": theta, "rope_scaling": dict(scaling)}
    kind = getattr(config, "rope_scaling_type", None)
    if kind == "ntk":  # equals a larger base
        width = config.hidden_size // config.num_attention_heads
        longest = int(config.max_position_embeddings * factor)
        return {"rope_theta": theta * factor ** (width / (width - 2)), "max_position_embeddings": longest}
    if kind is None:
        return {"rope_theta": theta}
    theirs = {"linear": "linear", "dynamic_ntk": "dynamic"}.get(kind)
    if theirs is None:
        raise UserError(
            f"rope_scaling_type = {kind!r} cannot be written in Hugging Face's format. Keep the model in PaddleNLP's format."
        )
    return {"rope_theta": theta, "rope_scaling": {"rope_type": theirs, "factor": factor}}
