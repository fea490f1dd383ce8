"""Tokenizers: training one with sentencepiece, loading one as PaddleNLP does, and telling two apart. Paddle-free until
`load_tokenizer` is called."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any

from paddle_llm.config.errors import UserError

CONFIG_FILE = "tokenizer_config.json"
# The first name is PaddleNLP's for LLaMA, the second Hugging Face's (and PaddleNLP's newer hub folders').
SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "tokenizer.model")
UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
_LONGEST_LINE = 4000  # sentencepiece drops longer ones from training without a word


def sentencepiece_model(folder: str) -> str | None:
    """The path of the folder's sentencepiece model if PaddleNLP would use it as LlamaTokenizer, else None."""
    try:
        with open(os.path.join(folder, CONFIG_FILE), encoding="utf-8") as stream:
            config = json.load(stream)
    except OSError:
        return None
    except ValueError as error:
        raise UserError(f"{os.path.join(folder, CONFIG_FILE)}: not JSON: {error}.") from error
    if config.get("tokenizer_class") != "LlamaTokenizer":
        return None
    return next((p for p in (os.path.join(folder, n) for n in SENTENCEPIECE_FILES) if os.path.isfile(p)), None)


def read_sentencepiece(path: str) -> Any:
    """A SentencePieceProcessor.

    Raises:
        UserError: the file is no sentencepiece model.
    """
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: not a sentencepiece model: {error}.") from error


def load_tokenizer(folder: str) -> Any:
    """The tokenizer that PaddleNLP's AutoTokenizer makes of a folder (or of a built-in name, which it downloads).

    Raises:
        UserError: no such folder and no network, or nothing in it that PaddleNLP knows.
    """
    _require_tokenizer(folder)
    from paddlenlp.transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # PaddleNLP raises whatever comes: OSError, ValueError, AttributeError of a None ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"tokenizer {folder}: PaddleNLP cannot load it: {reason}. Give a local folder with {CONFIG_FILE} and the "
            "vocabulary beside it, such as `paddle-llm tokenizer train` writes."
        ) from error


def _require_tokenizer(folder: str) -> None:
    if os.path.isdir(folder):
        names = set(os.listdir(folder))
        if CONFIG_FILE not in names:
            raise UserError(
                f"tokenizer {folder}: the folder has no {CONFIG_FILE}. Train one with `paddle-llm tokenizer train "
                f"--input FILES --output_dir {folder} --vocab_size N`, or copy the model's tokenizer files into it."
            )
    elif os.path.exists(folder) or folder.startswith((".", "/", "~")):
        raise UserError(f"tokenizer {folder}: no such folder. Give a folder that holds {CONFIG_FILE} and a vocabulary.")


def fingerprint(folder: str) -> str:
    """A hash of what every id stands for: the same for copies of a tokenizer under other file names and for additions
    behind a sentencepiece vocabulary, which change no id of a text; another for another vocabulary.

    Raises:
        UserError: the folder holds no tokenizer.
    """
    _require_tokenizer(folder)
    path = sentencepiece_model(folder)
    if path is not None:
        processor = read_sentencepiece(path)
        vocabulary: Iterable[tuple[int, str]] = enumerate(
            f"{processor.id_to_piece(i)}\t{processor.get_score(i)!r}" for i in range(processor.get_piece_size())
        )
    else:
        vocabulary = sorted((i, token) for token, i in load_tokenizer(folder).get_vocab().items())
    digest = hashlib.sha256()
    for number, token in vocabulary:
        digest.update(f"{number}\t{token}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:20]


def find_fingerprint(folder: str | None) -> str | None:
    """The fingerprint of the tokenizer in a local folder; None when there is none to compare with."""
    if not folder or not os.path.isfile(os.path.join(folder, CONFIG_FILE)):
        return None
    return fingerprint(folder)
