"""Loads tokenizer folders with transformers' AutoTokenizer: only local files, no code from the folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from paddle_llm.core.artifacts import (
    ADDED_TOKENS,
    MERGES,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    VOCAB_JSON,
)
from paddle_llm.core.console import say
from paddle_llm.core.downloads import HEAD_BYTES, failed_download
from paddle_llm.core.errors import UserError
from paddle_llm.core.transformers_import import import_transformers, repair_sentencepiece_proto
from paddle_llm.data.tokenizers.folder import (
    BARE_CLASS,
    BARE_CLASSES,
    PADDLENLP_CLASSES,
    SENTENCEPIECE_FILES,
    read_config,
)
from paddle_llm.data.tokenizers.protocol import TransformersTokenizer
from paddle_llm.data.tokenizers.saving import copy_when_saved

_PATH_KEYS = ("name_or_path", "vocab_file", "tokenizer_file", "special_tokens_map_file")
_CANNOT = ": transformers cannot load it: "
_REMEDY = f". Use a local folder with {TOKENIZER_CONFIG} and a vocabulary."
_reported: set[str] = set()


def load_with_transformers(folder: str) -> TransformersTokenizer:
    """Load a folder with transformers' AutoTokenizer.

    It differs from `AutoTokenizer.from_pretrained(folder)` in this: names that only transformers 5 or PaddleNLP write are
    translated; a sentencepiece model may have PaddleNLP's file name; and if the named class cannot use a tokenizer.json,
    tokenizer.json is used without that class, which is reported.

    Raises:
        UserError: If transformers cannot read the folder.
    """
    config = read_config(folder)
    translated = _translate(folder, config)
    if any(os.path.isfile(os.path.join(folder, name)) for name in SENTENCEPIECE_FILES):
        repair_sentencepiece_proto()
    try:
        tokenizer = _load(folder, translated)
    except UserError as error:
        if not {TOKENIZER_JSON, VOCAB_JSON, *SENTENCEPIECE_FILES} & set(os.listdir(folder)):
            raise UserError(
                f"tokenizer {folder}{_CANNOT}its class is {translated.get('tokenizer_class')}, and it has no {TOKENIZER_JSON}, "
                f"no sentencepiece model ({' or '.join(SENTENCEPIECE_FILES[::-1])}) and no {VOCAB_JSON} with {MERGES}. "
                "Copy the vocabulary into it."
            ) from error
        if not os.path.isfile(os.path.join(folder, TOKENIZER_JSON)) or translated.get("tokenizer_class") == BARE_CLASS:
            raise
        named = translated.get("tokenizer_class")
        failed = f"as {named}" if named else "without a tokenizer_class"
        translated = {**translated, "tokenizer_class": BARE_CLASS}
        tokenizer = _load(folder, translated)
        _report(
            f"tokenizer {folder}: transformers cannot read it {failed} ({_reason(error)}); {TOKENIZER_JSON} is used without the class"
        )
    copy_when_saved(tokenizer, folder, translated)
    return tokenizer


def _translate(folder: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return tokenizer_config.json in the form that transformers 4.55 reads."""
    translated = {key: value for key, value in config.items() if key not in _PATH_KEYS}
    fast = os.path.isfile(os.path.join(folder, TOKENIZER_JSON))
    named = translated.get("tokenizer_class") or translated.get("init_class")
    if fast and named in (*BARE_CLASSES, *PADDLENLP_CLASSES):
        translated["tokenizer_class"] = BARE_CLASS
    elif named:
        translated["tokenizer_class"] = named
    if isinstance(translated.get("extra_special_tokens"), list):  # transformers 5; version 4.55 expects a mapping
        listed = translated.get("additional_special_tokens")
        more = translated.pop("extra_special_tokens")
        translated["additional_special_tokens"] = [*listed, *more] if isinstance(listed, list) else more
    for key, value in translated.items():
        if key.endswith("_token"):
            translated[key] = _typed(value)
        elif key == "additional_special_tokens" and isinstance(value, list):
            translated[key] = [_typed(one) for one in value]
    if translated.get("tokenizer_class") == BARE_CLASS:
        # Otherwise the class returns token_type_ids, which no model here accepts.
        translated.setdefault("model_input_names", ["input_ids", "attention_mask"])
    return translated


def _typed(token: object) -> object:
    """Return a token with the type that transformers writes and requires to read an object as a token."""
    return {"__type": "AddedToken", **token} if isinstance(token, dict) and "content" in token else token


def _load(folder: str, config: dict[str, Any]) -> TransformersTokenizer:
    transformers = import_transformers()
    with _view(folder, config) as path, _quiet(transformers):
        try:
            tokenizer: TransformersTokenizer = transformers.AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
            tokenizer("a")  # some settings fail only in a call
            # A special token outside the vocabulary fails only when its id is requested.
            _ = tokenizer.all_special_ids, tokenizer.unk_token_id
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of the Rust library is a BaseException
            text = str(error).strip() or type(error).__name__
            text = text.split(", or contain one of the following strings")[0]  # followed by the names of all models
            reason = " ".join(text.replace(path, folder).split())[:300].rstrip(". ")
            reason = _broken_file(folder) or reason
            raise UserError(f"tokenizer {folder}{_CANNOT}{reason}{_REMEDY}") from error
    _require_deterministic(tokenizer, folder)
    _name_files(tokenizer, folder, path)
    return tokenizer


def _broken_file(folder: str) -> str | None:
    """Return a file of the folder whose download failed, with the remedy; None if there is none."""
    for name in (TOKENIZER_JSON, *SENTENCEPIECE_FILES, VOCAB_JSON, MERGES, SPECIAL_TOKENS_MAP, ADDED_TOKENS):
        file = Path(folder, name)
        if not file.is_file():
            continue
        with file.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
        problem = failed_download(head) if head else "is empty. Copy it again"
        if problem:
            return f"{name} {problem}"
    return None


def _reason(error: UserError) -> str:
    """Return the reason in an error of `_load`, without folder and remedy."""
    return str(error).partition(_CANNOT)[2].removesuffix(_REMEDY)


def _require_deterministic(tokenizer: TransformersTokenizer, folder: str) -> None:
    """Check that a text always gets the same ids; else ranks and resumed runs would train on different samples.

    Raises:
        UserError: If the tokenizer has BPE dropout.
    """
    dropout = getattr(tokenizer.backend_tokenizer.model, "dropout", None) if tokenizer.is_fast else None
    if dropout:
        raise UserError(
            f"tokenizer {folder}: {TOKENIZER_JSON} has a BPE dropout of {dropout:g}, so a text gets different ids each time. "
            "Set dropout to null in it."
        )


def _name_files(tokenizer: TransformersTokenizer, folder: str, path: str) -> None:
    """Replace the name of the temporary folder by that of the real one in the tokenizer's attributes."""
    tokenizer.name_or_path = folder
    for key in _PATH_KEYS:
        tokenizer.init_kwargs.pop(key, None)
    kept = getattr(tokenizer, "vocab_file", None)
    if isinstance(kept, str) and kept.startswith(path):
        name = os.path.relpath(kept, path)
        if not os.path.isfile(os.path.join(folder, name)):  # the model has PaddleNLP's file name
            name = SENTENCEPIECE_FILES[0]
        tokenizer.vocab_file = os.path.join(folder, name)


@contextmanager
def _view(folder: str, config: dict[str, Any]) -> Iterator[str]:
    """Create a temporary folder of links to the files of `folder`, with `config` and transformers' file names."""
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as path:
        for entry in os.scandir(folder):
            if entry.name != TOKENIZER_CONFIG:
                os.symlink(os.path.abspath(entry.path), os.path.join(path, entry.name))
        pieces = [os.path.join(path, name) for name in SENTENCEPIECE_FILES]
        if os.path.isfile(pieces[0]) and not os.path.lexists(pieces[1]):
            os.rename(*pieces)
        with open(os.path.join(path, TOKENIZER_CONFIG), "w", encoding="utf-8") as stream:
            json.dump(config, stream)
        yield path


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Suppress transformers' advice about settings of the folder."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _report(line: str) -> None:
    """Print a line once per process."""
    if line not in _reported:
        _reported.add(line)
        say(line)
