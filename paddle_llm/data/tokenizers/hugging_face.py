"""Tokenizer folders through transformers' AutoTokenizer: local files only, no code from the folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
from paddle_llm.data.tokenizers.saving import copy_when_saved

_PATH_KEYS = ("name_or_path", "vocab_file", "tokenizer_file", "special_tokens_map_file")
_CANNOT = ": transformers cannot load it: "
_REMEDY = f". Give a local folder with {TOKENIZER_CONFIG} and the vocabulary beside it."
_reported: set[str] = set()


def load_with_transformers(folder: str) -> Any:
    """The tokenizer that transformers' AutoTokenizer makes of a folder.

    Differences to a bare `AutoTokenizer.from_pretrained(folder)`: names that only transformers 5 or PaddleNLP writes are
    translated, a sentencepiece model may have PaddleNLP's file name, and a tokenizer.json that the named class cannot take
    is used as it is, which is reported.

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
                f"tokenizer {folder}: transformers cannot load it: its class is {translated.get('tokenizer_class')}, and it holds no {TOKENIZER_JSON}, no sentencepiece "
                f"model ({' or '.join(SENTENCEPIECE_FILES[::-1])}) and no vocab.json with merges.txt. Copy the vocabulary into it."
            ) from error
        if not os.path.isfile(os.path.join(folder, TOKENIZER_JSON)) or translated.get("tokenizer_class") == BARE_CLASS:
            raise
        named = translated.get("tokenizer_class")
        failed = f"as {named}" if named else "without a tokenizer_class"
        translated = {**translated, "tokenizer_class": BARE_CLASS}
        tokenizer = _load(folder, translated)
        _report(
            f"tokenizer {folder}: transformers cannot read it {failed} ({_reason(error)}). {TOKENIZER_JSON} is used as it is."
        )
    copy_when_saved(tokenizer, folder, translated)
    return tokenizer


def _translate(folder: str, config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json as transformers 4.55 reads it."""
    made = {key: value for key, value in config.items() if key not in _PATH_KEYS}
    fast = os.path.isfile(os.path.join(folder, TOKENIZER_JSON))
    named = made.get("tokenizer_class") or made.get("init_class")
    if fast and named in (*BARE_CLASSES, *PADDLENLP_CLASSES):
        made["tokenizer_class"] = BARE_CLASS
    elif named:
        made["tokenizer_class"] = named
    if isinstance(made.get("extra_special_tokens"), list):  # transformers 5; version 4.55 expects a mapping
        listed = made.get("additional_special_tokens")
        more = made.pop("extra_special_tokens")
        made["additional_special_tokens"] = [*listed, *more] if isinstance(listed, list) else more
    for key, value in made.items():
        if key.endswith("_token"):
            made[key] = _typed(value)
        elif key == "additional_special_tokens" and isinstance(value, list):
            made[key] = [_typed(one) for one in value]
    if made.get("tokenizer_class") == BARE_CLASS:
        # Else the class gives token_type_ids, which no model here takes.
        made.setdefault("model_input_names", ["input_ids", "attention_mask"])
    return made


def _typed(token: Any) -> Any:
    """A token with the type that transformers writes, without which it does not read an object as a token."""
    return {"__type": "AddedToken", **token} if isinstance(token, dict) and "content" in token else token


def _load(folder: str, config: dict[str, Any]) -> Any:
    transformers = import_transformers()
    with _view(folder, config) as path, _quiet(transformers):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            tokenizer("a")  # some settings fail only in a call
            # A special token that is not in the vocabulary fails only when its id is asked for.
            _ = tokenizer.all_special_ids, tokenizer.unk_token_id
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of the Rust library is a BaseException
            text = str(error).strip() or type(error).__name__
            text = text.split(", or contain one of the following strings")[0]  # followed by the names of all models
            reason = " ".join(text.replace(path, folder).split())[:300].rstrip(". ")
            reason = _broken_file(folder) or reason
            raise UserError(f"tokenizer {folder}{_CANNOT}{reason}{_REMEDY}") from error
    _require_one_result(tokenizer, folder)
    _name_files(tokenizer, folder, path)
    return tokenizer


def _broken_file(folder: str) -> str | None:
    """A file of the folder whose download went wrong, and the remedy; None if there is none."""
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
    """The reason of `_load` without the folder and the remedy."""
    return str(error).partition(_CANNOT)[2].removesuffix(_REMEDY)


def _require_one_result(tokenizer: Any, folder: str) -> None:
    """Raise UserError if a text gets other ids each time: ranks and resumed runs would train on different samples."""
    dropout = getattr(tokenizer.backend_tokenizer.model, "dropout", None) if tokenizer.is_fast else None
    if dropout:
        raise UserError(
            f"tokenizer {folder}: {TOKENIZER_JSON} has a BPE dropout of {dropout:g}, so that the same text gets other ids each time. "
            "Set dropout to null in it."
        )


def _name_files(tokenizer: Any, folder: str, path: str) -> None:
    """Replace the temporary folder's name by the real one in what the tokenizer keeps."""
    tokenizer.name_or_path = folder
    for key in _PATH_KEYS:
        tokenizer.init_kwargs.pop(key, None)
    kept = getattr(tokenizer, "vocab_file", None)
    if isinstance(kept, str) and kept.startswith(path):
        name = os.path.relpath(kept, path)
        if not os.path.isfile(os.path.join(folder, name)):  # PaddleNLP's name of the sentencepiece model
            name = SENTENCEPIECE_FILES[0]
        tokenizer.vocab_file = os.path.join(folder, name)


@contextmanager
def _view(folder: str, config: dict[str, Any]) -> Iterator[str]:
    """A folder of links to the files of `folder`, with another tokenizer_config.json and transformers' file names."""
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
def _quiet(transformers: Any) -> Iterator[None]:
    """No advice of transformers on settings that the folder's owner chose."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _report(line: str) -> None:
    """Report once in a process."""
    if line not in _reported:
        _reported.add(line)
        say(line)
