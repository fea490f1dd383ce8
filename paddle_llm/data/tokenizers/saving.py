"""Saves a tokenizer loaded by transformers by copying the files of its source.

transformers' own `save_pretrained` writes a new tokenizer.json from memory, with paths of this machine. Copies keep the
ids by construction and can be loaded by every version of transformers.
"""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from typing import Any

from paddle_llm.core.artifacts import (
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    CHAT_TEMPLATES_FOLDER,
    MERGES,
    PROCESSOR_CHAT_TEMPLATE,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    VOCAB_JSON,
)
from paddle_llm.data.tokenizers.folder import SENTENCEPIECE_FILES
from paddle_llm.data.tokenizers.protocol import TransformersTokenizer

_FILES = {
    TOKENIZER_JSON,
    SPECIAL_TOKENS_MAP,
    ADDED_TOKENS,
    *SENTENCEPIECE_FILES,
    CHAT_TEMPLATE,
    PROCESSOR_CHAT_TEMPLATE,
    MERGES,
    "spiece.model",
    VOCAB_JSON,
    "vocab.txt",
}
_FOLDERS = {CHAT_TEMPLATES_FOLDER}


def copy_when_saved(tokenizer: TransformersTokenizer, folder: str, config: dict[str, Any]) -> None:
    """Make `tokenizer.save_pretrained` copy the files of `folder`. If tokens were added, it writes new files as usual.

    Sets `source_config` of the tokenizer to the content of tokenizer_config.json. The trainer and PaddleNLP call
    `save_pretrained` of the object that they hold, so the method is replaced on this object.

    Args:
        tokenizer: Tokenizer loaded by transformers.
        folder: Its source.
        config: Content of tokenizer_config.json with which transformers loaded the folder.
    """
    named = {**config, "tokenizer_class": config.get("tokenizer_class") or type(tokenizer).__name__}
    tokenizer.source_config = named
    tokenizer.save_pretrained = partial(_save, tokenizer, len(tokenizer), folder, named)


def _save(
    tokenizer: TransformersTokenizer,
    size: int,
    source: str,
    config: dict[str, Any],
    save_directory: str,
    **options: Any,
) -> tuple[str, ...]:
    if len(tokenizer) != size or not os.path.isdir(source):
        return type(tokenizer).save_pretrained(tokenizer, save_directory, **options)
    os.makedirs(save_directory, exist_ok=True)
    written = [os.path.join(save_directory, TOKENIZER_CONFIG)]
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        target = os.path.join(save_directory, entry.name)
        if entry.name == SENTENCEPIECE_FILES[0]:  # transformers finds the model only by the other name
            target = os.path.join(save_directory, SENTENCEPIECE_FILES[1])
        if entry.is_dir() and entry.name in _FOLDERS:
            shutil.copytree(entry.path, target, dirs_exist_ok=True)
        elif entry.is_file() and entry.name in {*_FILES, *tokenizer.vocab_files_names.values()}:
            shutil.copyfile(entry.path, target)
            written.append(target)
    with open(written[0], "w", encoding="utf-8") as stream:
        stream.write(json.dumps(config, indent=2) + "\n")
    return tuple(written)
