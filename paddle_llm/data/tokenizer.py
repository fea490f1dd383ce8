"""Tokenizers: training one with sentencepiece, loading one as PaddleNLP does, and telling two apart. Paddle-free until
`load_tokenizer` is called."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from paddle_llm.config.errors import UserError
from paddle_llm.data.files import write_atomically

CONFIG_FILE = "tokenizer_config.json"
# The first name is PaddleNLP's for LLaMA, the second Hugging Face's (and PaddleNLP's newer hub folders').
SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "tokenizer.model")
FAST_FILE = "tokenizer.json"
# tokenizer.json as it stands: transformers' name of that class, its name since transformers 5, and PaddleNLP's.
_BARE_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend", "PretrainedTokenizerFast")
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
    if _class_name(config) != "LlamaTokenizer":
        return None
    return next((p for p in (os.path.join(folder, n) for n in SENTENCEPIECE_FILES) if os.path.isfile(p)), None)


def _class_name(config: dict[str, Any]) -> str | None:
    """PaddleNLP's name of a tokenizer's class; an export names transformers' as tokenizer_class, and this one beside it."""
    return config.get("init_class") or config.get("tokenizer_class")


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
        named = _named_class(folder)
        return AutoTokenizer.from_pretrained(folder) if named is None else named(folder)
    except Exception as error:  # PaddleNLP raises whatever comes: OSError, ValueError, AttributeError of a None ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"tokenizer {folder}: PaddleNLP cannot load it: {reason}. Give a local folder with {CONFIG_FILE} and the "
            "vocabulary beside it, such as `paddle-llm tokenizer train` writes."
        ) from error


def _named_class(folder: str) -> Callable[[str], Any] | None:
    """What loads a folder in which AutoTokenizer would not find its class (`init_class`), or LlamaTokenizer its file."""
    path = os.path.join(folder, CONFIG_FILE)
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as stream:
        config = json.load(stream)
    name, pieces = config.get("init_class"), sentencepiece_model(folder)
    renamed = pieces is not None and os.path.basename(pieces) != SENTENCEPIECE_FILES[0]
    if renamed:
        name = name or "LlamaTokenizer"
    elif pieces is None and _class_name(config) == "LlamaTokenizer" and os.path.isfile(os.path.join(folder, FAST_FILE)):
        name = "LlamaTokenizerFast"  # as in an export for FastDeploy, which has no sentencepiece model
    elif _class_name(config) in _BARE_CLASSES and os.path.isfile(os.path.join(folder, FAST_FILE)):
        return _load_bare  # LLaMA 3's, and what transformers' save_pretrained writes
    if not name:
        return None
    import paddlenlp.transformers

    found = getattr(paddlenlp.transformers, name).from_pretrained
    return partial(found, vocab_file=pieces) if renamed else found


def _load_bare(folder: str) -> Any:
    """A tokenizer.json of no class of its own. PaddleNLP's base class reads it, but knows of no token that stands before
    or behind a text: tokenizer.json does."""
    from paddlenlp.transformers import PretrainedTokenizerFast

    loaded = PretrainedTokenizerFast.from_pretrained(folder)
    backend = loaded.backend_tokenizer
    asked = backend.encode("a")
    marks = asked.special_tokens_mask
    before, behind = marks.index(0), marks[::-1].index(0)
    ids = asked.ids

    def build(text: list[int], other: list[int] | None = None) -> list[int]:
        return [*ids[:before], *text, *(other or []), *ids[len(ids) - behind :]]

    loaded.build_inputs_with_special_tokens = build
    loaded.verbose = False  # else it logs an error for each token that a tokenizer has none of
    return loaded


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
    loaded = None if path else load_tokenizer(folder)
    if (
        loaded is None or type(loaded).__name__ == "LlamaTokenizer"
    ):  # the latter: a built-in name, or no class in its files
        processor = read_sentencepiece(path) if loaded is None else loaded.sp_model
        vocabulary: Iterable[tuple[int, str]] = enumerate(
            f"{processor.id_to_piece(i)}\t{processor.get_score(i)!r}" for i in range(processor.get_piece_size())
        )
    else:
        vocabulary = sorted((i, token) for token, i in loaded.get_vocab().items())
    digest = hashlib.sha256()
    for number, token in vocabulary:
        digest.update(f"{number}\t{token}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:20]


def find_fingerprint(folder: str | None) -> str | None:
    """The fingerprint of the tokenizer in a local folder; None when there is none to compare with."""
    if not folder or not os.path.isfile(os.path.join(folder, CONFIG_FILE)):
        return None
    return fingerprint(folder)


def train_tokenizer(
    texts: Iterable[str],
    output_dir: str,
    vocab_size: int,
    *,
    model_type: str = "unigram",
    character_coverage: float = 0.9995,
    max_lines: int = 1_000_000,
    overwrite: bool = False,
) -> int:
    """Train a sentencepiece model and write it as a folder that PaddleNLP's AutoTokenizer loads as LlamaTokenizer.

    Ids: 0 <unk>, 1 <s>, 2 </s>, 3 <pad>, then 256 bytes (what the vocabulary lacks is spelled in bytes, so no text is
    lost), then pieces. Text is not normalised; digits are split. The same text gives the same model.

    Args:
        texts: documents; trained on line by line.
        vocab_size: pieces in all.
        model_type: unigram or bpe.
        character_coverage: share of the characters that become pieces of their own; the rest is spelled in bytes.
        max_lines: at most this many lines, drawn at random, are held in memory.

    Returns:
        The size of the vocabulary.

    Raises:
        UserError: too little text for the vocabulary, a folder in use.
    """
    if os.path.exists(os.path.join(output_dir, CONFIG_FILE)) and not overwrite:
        raise UserError(f"{output_dir}: holds a tokenizer already. Give another --output_dir, or --overwrite.")
    model = io.BytesIO()
    import sentencepiece

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            input_sentence_size=max_lines,
            shuffle_input_sentence=True,
            max_sentence_length=4 * _LONGEST_LINE,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            unk_piece=UNK,
            bos_piece=BOS,
            eos_piece=EOS,
            pad_piece=PAD,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_training_failed(vocab_size, str(error))) from error
    _write_folder(output_dir, model.getvalue())
    return vocab_size


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.splitlines():
            for first in range(0, len(line), _LONGEST_LINE):
                yield line[first : first + _LONGEST_LINE]


def _training_failed(vocab_size: int, reason: str) -> str:
    if limit := re.search(r"value <= (\d+)", reason):
        return (
            f"--vocab_size {vocab_size}: the text yields at most {limit[1]} pieces. Give a smaller one, or more text."
        )
    if needed := re.search(r"required_chars\. \d+ vs (\d+)", reason):
        return (
            f"--vocab_size {vocab_size}: special tokens, bytes and the characters of the text alone are {needed[1]}. Give a "
            "larger one, or a smaller --character_coverage."
        )
    if "sentences_.empty()" in reason:
        return "the input holds no text to train on."
    return f"sentencepiece cannot train: {reason}"


def _write_folder(output_dir: str, model: bytes) -> None:
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "pad_token": PAD,
        "add_bos_token": True,
        "add_eos_token": False,
    }
    folder = Path(output_dir)
    write_atomically(folder / SENTENCEPIECE_FILES[0], model)
    # Last: a folder without it is no tokenizer.
    write_atomically(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def open_decoder(folder: str) -> Callable[[Iterable[int]], str]:
    """A function from ids to text, for people to read.

    Raises:
        UserError: the folder holds no tokenizer.
    """
    _require_tokenizer(folder)
    path = sentencepiece_model(folder)
    decode = read_sentencepiece(path).decode if path else load_tokenizer(folder).decode
    return lambda ids: decode([int(i) for i in ids])
