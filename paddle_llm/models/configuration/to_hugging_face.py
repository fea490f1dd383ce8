"""From PaddleNLP's configuration of a model to Hugging Face's config.json: the way back from `configure.py`.

LLaMA, Qwen2, BLOOM and OPT as transformers spells them (4.55, which 5.x reads too); ChatGLM and GLM as their authors
published them, whose network is code that stands in their own repositories (`auto_map`).
"""

from __future__ import annotations

from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES
from paddle_llm.models.weights.names import is_tied

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def hugging_face_config(family: str, config: Any, *, dtype: str) -> dict[str, Any]:
    """What config.json says beside weights under Hugging Face's names.

    A value of None is kept: without the key, transformers would take its class's default (LLaMA: bos_token_id 1).

    Args:
        config: PaddleNLP's, plain (`vocab.plain_config`).
        dtype: of the weights: "float32", "bfloat16" or "float16".

    Raises:
        UserError: the network does what Hugging Face's cannot.
    """
    if getattr(config, "use_long_sequence_strategies", False):
        raise UserError("use_long_sequence_strategies is PaddleNLP's own: Hugging Face's networks have no such thing")
    values = FAMILIES[family].config_json.write(config)
    values |= {name: in_vocabulary(getattr(config, name, None), config.vocab_size) for name in _TOKENS}
    return values | {"tie_word_embeddings": is_tied(family, config), "torch_dtype": dtype, "use_cache": True}


def in_vocabulary(ids: Any, size: int) -> Any:
    """Without what no token has: PaddleNLP fills in its classes' defaults, those of the published vocabularies."""
    if isinstance(ids, list):
        kept = [number for number in ids if 0 <= number < size]
        return kept or None
    return ids if ids is not None and 0 <= ids < size else None
