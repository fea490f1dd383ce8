"""The variables that a tokenizer gives a chat template: its special tokens by name, as transformers' special_tokens_map has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddle_llm.core.artifacts import SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG
from paddle_llm.core.json_files import parse_json
from paddle_llm.data.tokenizers.text_codec import TextCodec

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LIST = "additional_special_tokens"


def special_token_values(codec: TextCodec, folder: str | None) -> dict[str, Any]:
    """Special tokens by name. A token that is null or empty is not among them, so that its name is undefined.

    Args:
        codec: The tokenizer; one that transformers has loaded is asked.
        folder: Its folder, whose files are read otherwise.
    """
    tokenizer = getattr(codec, "tokenizer", None)
    if type(tokenizer).__module__.partition(".")[0] == "transformers":
        return dict(tokenizer.special_tokens_map)
    config = _read(folder, TOKENIZER_CONFIG)
    values = dict(config)
    if "added_tokens_decoder" not in config:  # transformers reads the older file of such folders alone
        values |= _read(folder, SPECIAL_TOKENS_MAP)
    extra = values.get("extra_special_tokens")
    named = {name: values.get(name) for name in _NAMES} | (extra if isinstance(extra, dict) else {})
    found: dict[str, Any] = {name: _text(token) for name, token in named.items() if _text(token)}
    listed = [_text(token) for token in values.get(_LIST) or []]
    return {**found, _LIST: listed} if listed else found


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _read(folder: str | None, name: str) -> dict[str, Any]:
    file = Path(folder or "") / name
    if not folder or not file.is_file():
        return {}
    values = parse_json(file.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}
