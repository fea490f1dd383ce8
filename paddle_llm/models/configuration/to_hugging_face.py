"""Write PaddleNLP's configuration of a model as Hugging Face's config.json, the reverse of `configure.py`.

Families that transformers has are written in its names (4.55, which 5.x reads). ChatGLM and GLM are written in the
names of their authors, whose repositories hold the code of the network (`auto_map`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES
from paddle_llm.models.weights.names import is_tied

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def hugging_face_config(family: str, config: PretrainedConfig, *, dtype: str) -> dict[str, Any]:
    """Return the fields of config.json for weights under Hugging Face's names.

    A value of None is kept: without the key, transformers would use the default of its class (LLaMA: bos_token_id 1).

    Args:
        family: Name of the family.
        config: PaddleNLP's configuration without padding (`plain_config`).
        dtype: Type of the weights: "float32", "bfloat16" or "float16".

    Raises:
        UserError: If Hugging Face's network does not support a setting.
    """
    if getattr(config, "use_long_sequence_strategies", False):
        raise UserError(
            "use_long_sequence_strategies is not supported by Hugging Face's networks. Set it to false in config.json."
        )
    values = FAMILIES[family].config_json.write(config)
    values |= {name: in_vocabulary(getattr(config, name, None), config.vocab_size) for name in _TOKENS}
    return values | {"tie_word_embeddings": is_tied(family, config), "torch_dtype": dtype, "use_cache": True}


def in_vocabulary(ids: Any, size: int) -> Any:
    """Return the ids that are in the vocabulary; PaddleNLP fills in defaults of the published vocabularies."""
    if isinstance(ids, list):
        kept = [number for number in ids if 0 <= number < size]
        return kept or None
    return ids if ids is not None and 0 <= ids < size else None
