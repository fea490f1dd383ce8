"""Translate a folder's config.json to PaddleNLP's configuration of the model.

Hugging Face's names are translated, also `rope_parameters` of transformers 5. What PaddleNLP's models do not support is
refused, because PaddleNLP would train another network without a message.
"""

from __future__ import annotations

from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.families import Family
from paddle_llm.models.configuration.known_fields import quantization_of, refused_fields

# Keys of config.json that do not describe the network, or that PaddleNLP sets itself.
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
    """Return the keyword arguments of PaddleNLP's configuration class.

    Args:
        family: Family of the model.
        raw: Fields of config.json.
        where: Folder, which messages name.

    Raises:
        UserError: If PaddleNLP's model of this family does not support a field; the message names all such fields.
    """
    values = {key: value for key, value in raw.items() if key not in _DROPPED}
    problems: list[str] = []
    quantization = quantization_of(raw)
    if quantization:
        problems.append(f"the weights are quantized ({quantization}); use a folder with full-precision weights")
    problems += refused_fields(raw)
    family.config_json.translate(values, raw, problems)
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(
            f"{where}/config.json describes a {family.title} model that PaddleNLP does not support:{lines}\nUse another model, or change these fields."
        )
    values["architectures"] = [family.model_class.split(":")[1]]
    values.pop("model_type", None)
    return values
