"""Finds out whether sentencepiece gives the ids of a transformers tokenizer; it is several times as fast.

transformers converts a sentencepiece model to a tokenizer of the `tokenizers` library. For BPE both agree if the model does
not normalize text, has all byte pieces, and no two pieces have the same score. Unigram models may break ties differently,
so they are excluded. When a folder is opened, the agreement is verified on a sample of texts.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_llm.core.artifacts import TOKENIZER_JSON
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.folder import read_config, read_sentencepiece, sentencepiece_model
from paddle_llm.data.tokenizers.protocol import TransformersTokenizer
from paddle_llm.data.tokenizers.sample_texts import sample_texts
from paddle_llm.data.tokenizers.sentencepiece_model import (
    BPE,
    BYTE,
    NORMAL,
    USER_DEFINED,
    SentencePieceModel,
    read_model,
)

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_SAMPLES = 300


@dataclass(frozen=True)
class EqualSentencePiece:
    """A sentencepiece model with the ids of a fast tokenizer.

    Attributes:
        processor: SentencePieceProcessor.
        added: Pattern of added tokens, which the fast tokenizer finds first; sentencepiece cannot encode texts with them.
    """

    processor: SentencePieceProcessor
    added: re.Pattern[str]


def equal_sentencepiece(folder: str, tokenizer: TransformersTokenizer) -> EqualSentencePiece | None:
    """Return the folder's sentencepiece model if it gives the ids of its fast tokenizer; None if that is not certain.

    Args:
        folder: Tokenizer folder.
        tokenizer: Tokenizer loaded by transformers.
    """
    path, config = sentencepiece_model(folder), read_config(folder)
    if path is None or Path(folder, TOKENIZER_JSON).exists() or config.get("add_prefix_space") is False:
        return None
    if config.get("legacy") is False:  # adds no blank before a text that begins with one
        return None
    try:
        model = read_model(Path(path))
    except UserError:
        return None
    scores = Counter(piece.score for piece in model.pieces if piece.type == NORMAL)
    plain = not model.charsmap and not model.remove_extra_whitespaces and model.add_dummy_prefix
    if model.model_type != BPE or not plain or not model.ids_of(BYTE) or model.ids_of(USER_DEFINED):
        return None
    if max(scores.values(), default=0) > 1:
        return None
    processor = read_sentencepiece(path)
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    pattern = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or r"(?!)")
    return EqualSentencePiece(processor, pattern) if _agree(model, processor, tokenizer, pattern) else None


def _agree(
    model: SentencePieceModel,
    processor: SentencePieceProcessor,
    tokenizer: TransformersTokenizer,
    added: re.Pattern[str],
) -> bool:
    pieces = [piece.text.replace("\u2581", " ") for piece in model.pieces if piece.type == NORMAL]
    texts = [text for text in sample_texts(pieces or ["a"], _SAMPLES) if not added.search(text)]
    return processor.encode(texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]
