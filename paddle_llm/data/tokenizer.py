"""Tokenizers: training one with sentencepiece, loading one, and comparing two by a fingerprint. Paddle and transformers are
imported when a folder needs them."""

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

from paddle_llm.config.local_files.published_names import folder_like, why_unknown
from paddle_llm.core.artifacts import MODEL_CONFIG, TOKENIZER_CONFIG, TOKENIZER_JSON, VOCAB_JSON
from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.downloads import other_layout
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.folder import (
    SENTENCEPIECE_FILES,
    Reader,
    read_config,
    read_sentencepiece,
    reader_of,
    sentencepiece_model,
)
from paddle_llm.data.tokenizers.hugging_face import load_with_transformers

__all__ = [
    "SENTENCEPIECE_FILES",
    "find_fingerprint",
    "fingerprint",
    "load_tokenizer",
    "open_decoder",
    "read_sentencepiece",
    "sentencepiece_model",
    "train_tokenizer",
]
_VOCABULARY_FILES = {TOKENIZER_JSON, VOCAB_JSON, *SENTENCEPIECE_FILES}
UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
_LONGEST_LINE = 4000  # sentencepiece drops longer ones from training without a word


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a folder, or of a built-in name of PaddleNLP, which PaddleNLP downloads.

    transformers' AutoTokenizer reads every folder that it has a class for; PaddleNLP's reads the others, and folders of
    PaddleNLP's LlamaTokenizer (`tokenizers.folder.reader_of`). Both kinds have eos_token_id, pad_token_id, len,
    save_pretrained and __call__.

    Raises:
        UserError: If the folder does not exist or no library can read it.
    """
    _require_tokenizer(folder)
    if reader_of(folder) is Reader.TRANSFORMERS:
        return load_with_transformers(folder)
    return _load_with_paddlenlp(folder)


def _load_with_paddlenlp(folder: str) -> Any:
    from paddlenlp.transformers import AutoTokenizer

    try:
        named = _named_class(folder)
        return AutoTokenizer.from_pretrained(folder) if named is None else named(folder)
    except Exception as error:  # PaddleNLP raises whatever comes: OSError, ValueError, AttributeError of a None ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"tokenizer {folder}: PaddleNLP cannot load it: {reason}. Give a local folder with {TOKENIZER_CONFIG} and the "
            "vocabulary beside it, such as `paddle-llm tokenizer train` writes."
        ) from error


def _named_class(folder: str) -> Callable[[str], Any] | None:
    """What loads a folder in which AutoTokenizer would not find its class (`init_class`), or LlamaTokenizer its file."""
    name, pieces = read_config(folder).get("init_class"), sentencepiece_model(folder)
    renamed = pieces is not None and os.path.basename(pieces) != SENTENCEPIECE_FILES[0]
    if renamed:
        name = name or "LlamaTokenizer"
    if not name:
        return None
    import paddlenlp.transformers

    found = getattr(paddlenlp.transformers, name).from_pretrained
    return partial(found, vocab_file=pieces) if renamed else found


def _require_tokenizer(folder: str) -> None:
    if os.path.isdir(folder):
        names = set(os.listdir(folder))
        if TOKENIZER_CONFIG not in names and not (MODEL_CONFIG in names and names & _VOCABULARY_FILES):
            raise UserError(
                f"tokenizer {folder}: the folder has no {TOKENIZER_CONFIG}.{other_layout(Path(folder))} Train one with `paddle-llm tokenizer train "
                f"--input FILES --output_dir {folder} --vocab_size N`, or copy the model's tokenizer files into it."
            )
    elif os.path.exists(folder) or folder.startswith((".", "/", "~")):
        raise UserError(
            f"tokenizer {folder}: no such folder.{folder_like(folder)} Give a folder that holds {TOKENIZER_CONFIG} and a vocabulary."
        )
    elif problem := why_unknown(folder):
        raise UserError(f"tokenizer {folder}: {problem} Give a folder that holds {TOKENIZER_CONFIG} and a vocabulary.")


def fingerprint(folder: str) -> str:
    """A hash of the meaning of every id.

    Copies of a tokenizer under other file names have the same fingerprint, and so have additions behind a sentencepiece
    vocabulary, which change no id of a text. Another vocabulary, another EOS or another first word has another one.

    Raises:
        UserError: If the folder holds no tokenizer.
    """
    _require_tokenizer(folder)
    digest = hashlib.sha256()
    for line in _meanings(folder):
        digest.update(f"{line}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:20]


def _meanings(folder: str) -> Iterator[str]:
    """One line per id, and one per setting that changes ids."""
    reader, path = reader_of(folder), sentencepiece_model(folder)
    loaded = load_tokenizer(folder) if path is None or reader is Reader.TRANSFORMERS else None
    processor = None
    if path is not None:
        processor = _processor(path, optional=os.path.isfile(os.path.join(folder, TOKENIZER_JSON)))
    elif type(loaded).__name__ == "LlamaTokenizer":  # PaddleNLP's: a built-in name, or a folder that names no class
        processor = loaded.sp_model
    if processor is None:
        yield from (f"{number}\t{token}" for token, number in sorted(loaded.get_vocab().items(), key=_by_id))
        return
    for i in range(processor.get_piece_size()):
        yield f"{i}\t{processor.id_to_piece(i)}\t{processor.get_score(i)!r}"
    if reader is Reader.TRANSFORMERS:
        if loaded.eos_token_id != processor.eos_id():
            yield f"eos\t{loaded.eos_token_id}"
        if read_config(folder).get("add_prefix_space") is False:
            yield "add_prefix_space\tfalse"


def _processor(path: str, optional: bool) -> Any:
    """The sentencepiece model; None where a tokenizer.json has the vocabulary and the file is tiktoken's (LLaMA 3)."""
    try:
        return read_sentencepiece(path)
    except UserError:
        if optional:
            return None
        raise


def _by_id(item: tuple[str, int]) -> tuple[int, str]:
    return item[1], item[0]


def find_fingerprint(folder: str | None) -> str | None:
    """The fingerprint of the tokenizer in a local folder; None where the folder holds none."""
    if not folder or not os.path.isfile(os.path.join(folder, TOKENIZER_CONFIG)):
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
    if os.path.exists(os.path.join(output_dir, TOKENIZER_CONFIG)) and not overwrite:
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
    write_atomically(folder / TOKENIZER_CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def open_decoder(folder: str) -> Callable[[Iterable[int]], str]:
    """A function from ids to text, for people to read.

    Raises:
        UserError: If the folder holds no tokenizer.
    """
    _require_tokenizer(folder)
    path = sentencepiece_model(folder)
    if path is not None and reader_of(folder) is Reader.SENTENCEPIECE:
        decode = read_sentencepiece(path).decode
    else:
        decode = load_tokenizer(folder).decode
    return lambda ids: decode([int(i) for i in ids])
