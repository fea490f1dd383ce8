"""Reads the files of a tokenizer folder and chooses the library that loads it.

There are three readers. `TRANSFORMERS` is the default: its AutoTokenizer defines the ids of published folders.
`SENTENCEPIECE` uses only the sentencepiece model of a folder, if every setting of the folder is on a list of settings
that change no id. `PADDLENLP` reads folders that transformers cannot read.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llm.core.artifacts import (
    ADDED_TOKENS,
    PADDLENLP_SENTENCEPIECE_MODEL,
    SENTENCEPIECE_MODEL,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
)
from paddle_llm.core.downloads import HEAD_BYTES, failed_download
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# The first name is PaddleNLP's for LlamaTokenizer; the second is Hugging Face's, also in newer folders of PaddleNLP.
SENTENCEPIECE_FILES = (PADDLENLP_SENTENCEPIECE_MODEL, SENTENCEPIECE_MODEL)
BARE_CLASS = "PreTrainedTokenizerFast"
# Names of the class that uses tokenizer.json without changes: in transformers 4, transformers 5 and PaddleNLP.
BARE_CLASSES = (BARE_CLASS, "TokenizersBackend", "PretrainedTokenizerFast")
# Classes of PaddleNLP that transformers does not have, or that read other vocabulary files there.
PADDLENLP_CLASSES = (
    "BloomTokenizer",
    "ChatGLMTokenizer",
    "ChatGLMv2Tokenizer",
    "ErnieTokenizer",
    "GLMBertTokenizer",
    "GLMChineseTokenizer",
    "GLMGPT2Tokenizer",
    "GLMTokenizer",
    "GPTChineseTokenizer",
    "GPTTokenizer",
    "GPTTokenizerFast",
    "Llama3Tokenizer",
    "QWenTokenizer",
    "YuanTokenizer",
)
# Settings of LlamaTokenizer with the values that change neither an id of a text nor a special token.
_ANY: tuple[object, ...] = ()
_HARMLESS: dict[str, tuple[object, ...]] = {
    "_from_auto": _ANY,
    "add_bos_token": (True, False),
    "add_eos_token": (False,),
    "add_prefix_space": (True, None),
    "auto_map": (None,),
    "chat_template": _ANY,
    "clean_up_tokenization_spaces": (False, None),
    "decode_with_prefix_space": (False,),
    "from_slow": _ANY,
    "init_class": ("LlamaTokenizer",),
    "legacy": (True, None),
    "mask_token": (None,),
    "model_input_names": _ANY,
    "model_max_length": _ANY,
    "name_or_path": _ANY,
    "padding_side": _ANY,
    "sep_token": (None,),
    "cls_token": (None,),
    "sp_model_kwargs": ({}, None),
    "special_tokens_map_file": _ANY,
    "tokenizer_class": ("LlamaTokenizer", *BARE_CLASSES),
    "tokenizer_file": _ANY,
    "truncation_side": _ANY,
    "use_default_system_prompt": _ANY,
}
_SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token")
_LISTED_KEYS = ("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder")
# Keys that transformers writes in a folder of LlamaTokenizer; PaddleNLP neither writes nor reads them.
_HUGGING_FACE_KEYS = ("legacy", "add_prefix_space", "extra_special_tokens")
# PaddleNLP's class writes these names for every model.
_PADDLENLP_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_ABSENT = "a default name of a token that the model does not have"
_PADDLENLP_ADDED = {"additional_special_tokens", "added_tokens_decoder", ADDED_TOKENS, _ABSENT}
_PADDLENLP_KEY = "decode_with_prefix_space"


class Reader(Enum):
    """Library whose ids a folder has."""

    SENTENCEPIECE = "sentencepiece"
    TRANSFORMERS = "transformers"
    PADDLENLP = "PaddleNLP"


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} if the file does not exist.

    Raises:
        UserError: If the file does not contain a JSON object.
    """
    return read_json_object(Path(path)) if os.path.exists(path) else {}


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the folder's tokenizer_config.json; {} if it has none."""
    return read_json(os.path.join(folder, TOKENIZER_CONFIG))


def class_name(config: dict[str, Any]) -> str | None:
    """Return the name of the tokenizer's class.

    An export of this package has transformers' name in tokenizer_class and PaddleNLP's in init_class.
    """
    name = config.get("init_class") or config.get("tokenizer_class")
    return name if isinstance(name, str) else None


def token_text(token: object) -> str | None:
    """Return the text of a token in a JSON file, which is text or an object with `content`; else None."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and not any("\ud800" <= sign <= "\udfff" for sign in text) else None


def special_tokens(folder: str | Path) -> list[str]:
    """Return all special tokens named in the files of a folder, and the three of LlamaTokenizer."""
    tokens: dict[str, Any] = dict(_PADDLENLP_DEFAULTS)
    listed: list[object] = []
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP):
        values = read_json(os.path.join(folder, name))
        tokens.update({key: value for key, value in values.items() if key.endswith("_token") and "add_" not in key})
        listed += values.get("additional_special_tokens") or []
        listed += (values.get("added_tokens_decoder") or {}).values()
    contents = (t["content"] if isinstance(t, dict) else t for t in [*tokens.values(), *listed] if t)
    return sorted({token for token in contents if isinstance(token, str)})


def sentencepiece_model(folder: str | Path) -> str | None:
    """Return the path of the sentencepiece model of a LlamaTokenizer folder; None for other folders."""
    if class_name(read_config(folder)) != "LlamaTokenizer":
        return None
    return next((p for p in (os.path.join(folder, n) for n in SENTENCEPIECE_FILES) if os.path.isfile(p)), None)


def read_sentencepiece(path: str) -> SentencePieceProcessor:
    """Load a sentencepiece model as SentencePieceProcessor.

    Raises:
        UserError: If the file is not a sentencepiece model.
    """
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=path)
    except (OSError, RuntimeError) as error:
        with open(path, "rb") as stream:
            problem = failed_download(stream.read(HEAD_BYTES))
        if problem is not None:
            raise UserError(f"{path}: {problem}.") from error
        raise UserError(f"{path}: not a sentencepiece model: {error}. Copy the file again.") from error


def reader_of(folder: str) -> Reader:
    """Return the library that reads a tokenizer folder; PaddleNLP for names of built-in tokenizers.

    Raises:
        UserError: If a JSON file or the sentencepiece model of the folder is damaged.
    """
    if not os.path.isdir(folder):
        return Reader.PADDLENLP
    config = read_config(folder)
    name, pieces = class_name(config), sentencepiece_model(folder)
    fast = os.path.isfile(os.path.join(folder, TOKENIZER_JSON))
    if pieces is not None and _is_paddlenlp_folder(config, pieces):
        processor = read_sentencepiece(pieces)
        settings = _changing_settings(folder, config, processor)
        if not settings:
            return Reader.SENTENCEPIECE
        if not fast and settings <= _PADDLENLP_ADDED and _paddlenlp_assigns_ids(config):
            return Reader.PADDLENLP
        return Reader.TRANSFORMERS
    if fast:
        return Reader.TRANSFORMERS
    if pieces is not None:
        read_sentencepiece(pieces)  # reports a damaged file more clearly than transformers
    if name in PADDLENLP_CLASSES or (name is None and os.path.isfile(os.path.join(folder, SENTENCEPIECE_FILES[0]))):
        return Reader.PADDLENLP
    return Reader.TRANSFORMERS


def _is_paddlenlp_folder(config: dict[str, Any], pieces: str) -> bool:
    """Return whether the folder has PaddleNLP's name of the model file, or is an export of this package."""
    exported = config.get("init_class") == "LlamaTokenizer" and config.get("tokenizer_class") in BARE_CLASSES
    return exported or os.path.basename(pieces) == SENTENCEPIECE_FILES[0]


def _paddlenlp_assigns_ids(config: dict[str, Any]) -> bool:
    """Return whether PaddleNLP assigns the ids of the folder's added tokens."""
    if any(config.get(key) is not None for key in _HUGGING_FACE_KEYS):
        return False
    return not config.get("added_tokens_decoder") or _PADDLENLP_KEY in config


def _changing_settings(folder: str, config: dict[str, Any], processor: SentencePieceProcessor) -> set[str]:
    """Return the settings of a folder that are not on the list of harmless ones, by name of the key or file."""
    named = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
    found: set[str] = set()
    mapped = read_json(os.path.join(folder, SPECIAL_TOKENS_MAP))
    for key, value in [*config.items(), *mapped.items()]:
        if key in _SPECIAL_KEYS:
            text = token_text(value)
            number = processor.piece_to_id(text) if text is not None else -1
            is_piece = text is not None and processor.id_to_piece(number) == text
            absent = named.get(key, -1) < 0
            if absent and not is_piece and text == _PADDLENLP_DEFAULTS.get(key):
                found.add(_ABSENT)
            elif not (value is None and absent) and not (is_piece and number == named.get(key, number)):
                found.add(key)
        elif key in _LISTED_KEYS:
            if not all(_is_piece(processor, *entry) for entry in _ids_and_tokens(value)):
                found.add(key)
        elif key not in _HARMLESS or (_HARMLESS[key] is not _ANY and value not in _HARMLESS[key]):
            found.add(key)
    added = read_json(os.path.join(folder, ADDED_TOKENS))
    if not all(_is_piece(processor, number, token) for token, number in added.items()):
        found.add(ADDED_TOKENS)
    return found


def _ids_and_tokens(value: object) -> list[tuple[object, object]]:
    """Return (id or None, token) for a list of tokens or an added_tokens_decoder."""
    if isinstance(value, dict):
        return list(value.items())
    return [(None, token) for token in value] if isinstance(value, list) else [(None, value)] * (value is not None)


def _is_piece(processor: SentencePieceProcessor, number: object, token: object) -> bool:
    """Return whether a token is a control piece of the model with the id given in the folder."""
    text = token_text(token)
    if text is None:
        return False
    found = processor.piece_to_id(text)
    if processor.id_to_piece(found) != text or not (processor.is_control(found) or processor.is_unknown(found)):
        return False
    return number is None or str(number) == str(found)
