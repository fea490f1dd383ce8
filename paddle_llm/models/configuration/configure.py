"""From a folder's config.json to PaddleNLP's configuration of the model, with this run's switches.

Translates Hugging Face's spellings (also `rope_parameters` of transformers 5) and refuses what PaddleNLP's models cannot
express, where PaddleNLP itself would train something else in silence.
"""

from __future__ import annotations

from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.families import Family
from paddle_llm.models.configuration.known_fields import quantization_of, refused_fields

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
    family.config_json.translate(values, raw, problems)
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(f"{where}/config.json describes a {family.title} that PaddleNLP cannot express:{lines}")
    values["architectures"] = [family.model_class.split(":")[1]]
    values.pop("model_type", None)
    return values
