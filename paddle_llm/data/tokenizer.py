"""Loads, trains and fingerprints tokenizers. Paddle and transformers are imported only if a folder needs them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_llm.config.local_files.published_names import folder_like, why_unknown
from paddle_llm.core.artifacts import MODEL_CONFIG, TOKENIZER_CONFIG, TOKENIZER_JSON, VOCAB_JSON
from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.downloads import describe_other_layout
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
from paddle_llm.data.tokenizers.protocol import Tokenizer

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_VOCABULARY_FILES = {TOKENIZER_JSON, VOCAB_JSON, *SENTENCEPIECE_FILES}
UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
_LONGEST_LINE = 4000  # characters; sentencepiece silently drops longer lines from training


def load_tokenizer(folder: str) -> Tokenizer:
    """Load the tokenizer of a folder, or of a built-in name of PaddleNLP, which PaddleNLP downloads.

    transformers' AutoTokenizer reads every folder that it has a class for. PaddleNLP's reads the others, and folders of
    PaddleNLP's LlamaTokenizer (see `tokenizers.folder.reader_of`).

    Raises:
        UserError: If the folder does not exist or no library can read it.
    """
    require_tokenizer(folder)
    if reader_of(folder) is Reader.TRANSFORMERS:
        return load_with_transformers(folder)
    return _load_with_paddlenlp(folder)


def _load_with_paddlenlp(folder: str) -> Tokenizer:
    from paddlenlp.transformers import AutoTokenizer

    try:
        named = _named_class(folder)
        return AutoTokenizer.from_pretrained(folder) if named is None else named(folder)
    except Exception as error:  # PaddleNLP raises any type: OSError, ValueError, AttributeError of a None, ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"tokenizer {folder}: PaddleNLP cannot load it: {reason}. Use a local folder with {TOKENIZER_CONFIG} and a "
            "vocabulary, such as `paddle-llm tokenizer train` writes."
        ) from error


def _named_class(folder: str) -> Callable[[str], Tokenizer] | None:
    """Return a loader for a folder whose class (`init_class`) or vocabulary file AutoTokenizer cannot find; else None."""
    name, pieces = read_config(folder).get("init_class"), sentencepiece_model(folder)
    renamed = pieces is not None and os.path.basename(pieces) != SENTENCEPIECE_FILES[0]
    if renamed:
        name = name or "LlamaTokenizer"
    if not name:
        return None
    import paddlenlp.transformers

    load: Callable[..., Tokenizer] = getattr(paddlenlp.transformers, name).from_pretrained
    return partial(load, vocab_file=pieces) if renamed else load


def require_tokenizer(folder: str) -> None:
    """Check the files of a tokenizer folder, or a built-in name, without loading it.

    Raises:
        UserError: If the folder does not exist or has no tokenizer, or the name is unknown.
    """
    if os.path.isdir(folder):
        names = set(os.listdir(folder))
        if TOKENIZER_CONFIG not in names and not (MODEL_CONFIG in names and names & _VOCABULARY_FILES):
            raise UserError(
                f"tokenizer {folder}: the folder has no {TOKENIZER_CONFIG}.{describe_other_layout(Path(folder))} Train a tokenizer with "
                f"`paddle-llm tokenizer train --input FILES --output_dir {folder} --vocab_size N`, or copy the model's "
                "tokenizer files into the folder."
            )
    elif os.path.exists(folder) or folder.startswith((".", "/", "~")):
        raise UserError(
            f"tokenizer {folder}: no such folder.{folder_like(folder)} Use a folder with {TOKENIZER_CONFIG} and a vocabulary."
        )
    elif problem := why_unknown(folder):
        raise UserError(f"tokenizer {folder}: {problem} Use a folder with {TOKENIZER_CONFIG} and a vocabulary.")


def fingerprint(folder: str) -> str:
    """Return a hash of the meaning of every id.

    Other file names do not change the fingerprint. Tokens added after a sentencepiece vocabulary do not change it either,
    because they change no id of a text. Another vocabulary, EOS id or treatment of the first word changes it.

    Raises:
        UserError: If the folder has no tokenizer.
    """
    require_tokenizer(folder)
    digest = hashlib.sha256()
    for line in _meanings(folder):
        digest.update(f"{line}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:20]


def _meanings(folder: str) -> Iterator[str]:
    """Yield one line per id, and one per setting that changes ids."""
    reader, path = reader_of(folder), sentencepiece_model(folder)
    tokenizer = load_tokenizer(folder) if path is None or reader is Reader.TRANSFORMERS else None
    if path is not None:
        processor = _processor(path, optional=os.path.isfile(os.path.join(folder, TOKENIZER_JSON)))
    else:
        processor = _llama_processor(tokenizer)
    if processor is None:
        assert tokenizer is not None, "folders that have tokenizer.json are read by transformers"
        yield from (f"{number}\t{token}" for token, number in sorted(tokenizer.get_vocab().items(), key=_by_id))
        return
    for i in range(processor.get_piece_size()):
        yield f"{i}\t{processor.id_to_piece(i)}\t{processor.get_score(i)!r}"
    if tokenizer is not None and reader is Reader.TRANSFORMERS:
        if tokenizer.eos_token_id != processor.eos_id():
            yield f"eos\t{tokenizer.eos_token_id}"
        if read_config(folder).get("add_prefix_space") is False:
            yield "add_prefix_space\tfalse"


def _processor(path: str, optional: bool) -> SentencePieceProcessor | None:
    """Return the sentencepiece model; None if tokenizer.json has the vocabulary and the file is tiktoken's."""
    try:
        return read_sentencepiece(path)
    except UserError:
        if optional:
            return None
        raise


def _llama_processor(tokenizer: Tokenizer | None) -> SentencePieceProcessor | None:
    """Return the sentencepiece model of a LlamaTokenizer without a folder, or whose folder names no class; else None."""
    return getattr(tokenizer, "sp_model", None) if type(tokenizer).__name__ == "LlamaTokenizer" else None


def _by_id(item: tuple[str, int]) -> tuple[int, str]:
    return item[1], item[0]


def find_fingerprint(folder: str | None) -> str | None:
    """Return the fingerprint of the tokenizer in a local folder; None if the folder has none."""
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

    Ids: 0 <unk>, 1 <s>, 2 </s>, 3 <pad>, then 256 bytes, then pieces. Characters outside the vocabulary are encoded as
    bytes, so no text is lost. Text is not normalized; digits are split. The same text gives the same model.

    Args:
        texts: Documents; the model is trained on their lines.
        output_dir: Folder to write.
        vocab_size: Total number of pieces.
        model_type: "unigram" or "bpe".
        character_coverage: Share of the characters that become pieces; the others are encoded as bytes.
        max_lines: Maximum number of lines in memory, drawn at random.
        overwrite: Whether to replace a tokenizer in the folder.

    Returns:
        The size of the vocabulary.

    Raises:
        UserError: If the text is too small for the vocabulary, or the folder has a tokenizer already.
    """
    if os.path.exists(os.path.join(output_dir, TOKENIZER_CONFIG)) and not overwrite:
        raise UserError(f"{output_dir}: contains a tokenizer already. Use another --output_dir or --overwrite.")
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
            f"--vocab_size {vocab_size}: too large for the text, which yields at most {limit[1]} pieces. Use a smaller "
            "value or more text."
        )
    if needed := re.search(r"required_chars\. \d+ vs (\d+)", reason):
        return (
            f"--vocab_size {vocab_size}: too small: special tokens, bytes and characters of the text need {needed[1]}. "
            "Use a larger value, or a smaller --character_coverage."
        )
    if "sentences_.empty()" in reason:
        return "the input has no text to train on. Give files with text."
    return f"sentencepiece cannot train: {reason}. Check the text and the options."


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
    # Written last: a folder without this file does not count as a tokenizer.
    write_atomically(folder / TOKENIZER_CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def open_decoder(folder: str) -> Callable[[Iterable[int]], str]:
    """Return a function from ids to text for display.

    Raises:
        UserError: If the folder has no tokenizer.
    """
    require_tokenizer(folder)
    path = sentencepiece_model(folder)
    if path is not None and reader_of(folder) is Reader.SENTENCEPIECE:
        decode: Callable[[list[int]], str] = read_sentencepiece(path).decode
    else:
        decode = load_tokenizer(folder).decode
    return lambda ids: decode([int(i) for i in ids])
