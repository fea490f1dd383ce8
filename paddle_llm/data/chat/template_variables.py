"""Variables that a tokenizer provides to a chat template: special tokens by name, as in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddle_llm.core.artifacts import SPECIAL_TOKENS_MAP
from paddle_llm.data.tokenizers.folder import read_config, read_json
from paddle_llm.data.tokenizers.protocol import is_from_transformers
from paddle_llm.data.tokenizers.text_codec import TextCodec

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LIST = "additional_special_tokens"


def special_token_variables(codec: TextCodec, folder: str | None) -> dict[str, Any]:
    """Return special tokens by name. A null or empty token is omitted, so that its name is undefined in the template.

    Args:
        codec: Codec of the tokenizer; a tokenizer loaded by transformers provides the tokens itself.
        folder: Tokenizer folder, whose files are read otherwise.
    """
    tokenizer = getattr(codec, "tokenizer", None)
    if is_from_transformers(tokenizer):
        return dict(tokenizer.special_tokens_map)
    config = read_config(folder) if folder else {}
    values = dict(config)
    if folder and "added_tokens_decoder" not in config:  # for such folders transformers reads only the older file
        values |= read_json(Path(folder, SPECIAL_TOKENS_MAP))
    extra = values.get("extra_special_tokens")
    named = {name: values.get(name) for name in _NAMES} | (extra if isinstance(extra, dict) else {})
    found: dict[str, Any] = {name: _content(token) for name, token in named.items() if _content(token)}
    listed = [_content(token) for token in values.get(_LIST) or []]
    return {**found, _LIST: listed} if listed else found


def _content(token: object) -> Any:
    return token.get("content") if isinstance(token, dict) else token
