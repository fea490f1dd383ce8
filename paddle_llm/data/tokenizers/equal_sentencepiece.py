"""Where sentencepiece itself gives the ids of transformers' tokenizer, several times as fast.

transformers turns a sentencepiece model into a tokenizer of the `tokenizers` library. For bpe the two agree where the model does
not change the text, knows every byte, and no two pieces have the same score; unigram models may break ties differently, so they
are not on the list. What this rule says is checked on a sample of texts when a folder is opened.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_llm.core.artifacts import TOKENIZER_JSON
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.folder import read_config, read_sentencepiece, sentencepiece_model
from paddle_llm.data.tokenizers.sentencepiece_model import BPE, BYTE, NORMAL, USER_DEFINED, read_model

_SAMPLES = 300


@dataclass(frozen=True)
class EqualSentencePiece:
    """A sentencepiece model with the ids of a fast tokenizer.

    Attributes:
        processor: the SentencePieceProcessor.
        added: finds a token that the fast tokenizer looks for before all else; texts with one are not for sentencepiece.
    """

    processor: Any
    added: re.Pattern[str]


def equal_sentencepiece(folder: str, tokenizer: Any) -> EqualSentencePiece | None:
    """The folder's sentencepiece model if it gives the ids of its fast tokenizer; None where that is not certain.

    Args:
        tokenizer: what transformers makes of the folder.
    """
    path, config = sentencepiece_model(folder), read_config(folder)
    if path is None or Path(folder, TOKENIZER_JSON).exists() or config.get("add_prefix_space") is False:
        return None
    if config.get("legacy") is False:  # puts no blank before a text that begins with one
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


def _agree(model: Any, processor: Any, tokenizer: Any, added: re.Pattern[str]) -> bool:
    from paddle_llm.data.tokenizers.tokenizer_check import sample_texts

    pieces = [piece.text.replace("\u2581", " ") for piece in model.pieces if piece.type == NORMAL]
    texts = [text for text in sample_texts(pieces or ["a"], _SAMPLES) if not added.search(text)]
    return processor.encode(texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]
