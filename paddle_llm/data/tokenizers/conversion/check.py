"""Checks, in every export, that a tokenizer.json gives the ids of its source, on a fixed sample of texts."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.sample_texts import sample_texts
from paddle_llm.data.tokenizers.sentencepiece_model import BPE, NORMAL, UNIGRAM, SentencePieceModel
from paddle_llm.data.tokenizers.text_codec import open_codec

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

_LIMIT = 0.01  # share of texts that may differ


def check_ids(
    content: dict[str, Any],
    folder: Path,
    *,
    model: SentencePieceModel | None = None,
    is_converted: bool = True,
) -> None:
    """Compare the ids of a tokenizer.json with those of the folder it was made from, and report differences.

    Args:
        content: Content of tokenizer.json.
        folder: Tokenizer folder.
        model: Sentencepiece model of the folder, if any.
        is_converted: Whether this package created tokenizer.json, so that many differences are an error; else it was copied.

    Raises:
        UserError: If more than 1% of the texts differ, or the `tokenizers` library cannot read it.
    """
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library's own errors are bare Exceptions
        raise UserError(
            f"tokenizer {folder}: the tokenizers library cannot read its tokenizer.json: {error}. Copy the file again."
        ) from error
    encode = _encoder(folder)
    if encode is None:
        return
    texts = sample_texts(_pieces(model, tokenizer))
    marks = [token["content"] for token in content.get("added_tokens", [])]
    texts = [text for text in texts if not any(mark in text for mark in marks)]
    found = [made.ids for made in tokenizer.encode_batch(texts, add_special_tokens=False)]
    wanted = [encode(text) for text in texts]
    other = [number for number in range(len(texts)) if found[number] != wanted[number]]
    ties = [number for number in other if model is not None and is_tie(model, found[number], wanted[number])]
    shared = _sharing_a_score(model) if model is not None else 0
    _report(
        [texts[number] for number in other if number not in ties], len(ties), len(texts), folder, is_converted, shared
    )


def _sharing_a_score(model: SentencePieceModel) -> int:
    """Return how many pieces of a BPE model share their score with another one.

    Pieces that were added to a trained vocabulary do (Chinese LLaMA).
    """
    scores = Counter(piece.score for piece in model.pieces if piece.type == NORMAL)
    return sum(number for number in scores.values() if number > 1) if model.model_type == BPE else 0


def _report(differing: list[str], ties: int, number: int, folder: Path, is_converted: bool, shared: int) -> None:
    if ties:
        say(
            f"tokenizer.json: in {ties} of {number} sample texts, a run such as ----- is split into the same pieces in another "
            "order, because the alternatives have equal scores; the texts are unchanged and nothing has to be done"
        )
    if not differing:
        return
    problem = f"{len(differing)} of {number} sample texts get other ids from tokenizer.json than from {folder}, e.g. {differing[0]!r}"
    if shared:
        say(
            f"{problem}. {shared} pieces share a score; sentencepiece merges the leftmost of them first, whereas "
            "tokenizer.json needs a fixed order. The texts are unchanged; transformers' own conversion has the same difference"
        )
        return
    if is_converted and len(differing) > _LIMIT * number:
        raise UserError(
            f"{problem}. A server would give the model tokens that it was not trained on. Use the original tokenizer files."
        )
    say(problem)


def is_tie(model: SentencePieceModel, found: Sequence[int], wanted: Sequence[int]) -> bool:
    """Return whether two segmentations have the same pieces, or the same score up to 32-bit rounding."""
    if sorted(found) == sorted(wanted):
        return True
    if model.model_type != UNIGRAM:
        return False
    scores = [sum(model.pieces[i].score for i in ids) for ids in (found, wanted)]
    return abs(scores[0] - scores[1]) <= 1e-6 * abs(scores[0])


def _pieces(model: SentencePieceModel | None, tokenizer: FastTokenizer) -> list[str]:
    if model is not None:
        texts = (piece.text.replace("\u2581", " ") for piece in model.pieces if piece.type == NORMAL)
    else:
        size = tokenizer.get_vocab_size(with_added_tokens=False)
        chosen = random.Random(1).sample(range(size), min(size, 4000))
        texts = (tokenizer.decode([number]) for number in sorted(chosen))
    return [text for text in texts if text] or ["a"]


def _encoder(folder: Path) -> Callable[[str], list[int]] | None:
    """Return the encoder of the source; None if it cannot be loaded here (LLaMA 3's needs tiktoken)."""
    try:
        codec = open_codec(str(folder))
    except UserError as error:
        say(f"tokenizer.json was not compared with its source: {error}")
        return None
    return codec.encode
