"""Converts a sentencepiece model to a tokenizer.json (the format of the `tokenizers` library) with the same ids.

Text is normalized as a whole. Prepend puts a blank before it (Metaspace would not for a text that begins with a blank).
It is not split into words, as in sentencepiece. Text after a special token is a separate text with a blank before it, as
in training (data/samples/encode.py) and in the tokenizers of Meta and PaddleNLP.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any

from paddle_llm.data.tokenizers.sentencepiece_model import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
)

_BLANK = "\u2581"
_MANY = 1_000_000  # more blanks than any text begins with
# Changes of nmt_nfkc in addition to NFKC (builder.cc), which keeps the full-width tilde.
_REMOVED = r"[\x{1}-\x{8}\x{B}\x{E}-\x{1F}\x{7F}\x{8F}\x{9F}]"
_BLANKS = r"[\t\n\x{C}\r\x{61C}\x{1680}\x{200B}\x{200C}\x{200E}\x{200F}\x{2028}\x{2029}\x{2581}\x{FEFF}\x{FFFD}]"
_UNASSIGNED = "\ufff0"  # an unassigned character
# A text may contain the name of a byte piece. Split after the "<", it is not taken for the piece.
_BYTE_NAME = "(?<=<)(?=0x[0-9A-F]{2}>)"
_BYTE_NAME_ALONE = r"\A<(?=0x[0-9A-F]{2}>\z)"


def tokenizer_json(
    model: SentencePieceModel,
    added: dict[str, int],
    before: Iterable[str] = (),
    after: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the content of tokenizer.json.

    Args:
        model: The sentencepiece model.
        added: Ids of special tokens and of tokens after the model's pieces; they are found in a text first.
        before: Special tokens before every text.
        after: Special tokens after every text.
    """
    known = {piece.text: number for number, piece in enumerate(model.pieces)}
    ids = {**{model.pieces[i].text: i for i in [*model.ids_of(UNKNOWN), *model.ids_of(CONTROL)]}, **added}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token, number) for token, number in sorted(ids.items(), key=lambda item: item[1])],
        "normalizer": _normalizer(model),
        "pre_tokenizer": _pre_tokenizer(model),
        "post_processor": _post_processor({**known, **ids}, list(before), list(after)),
        "decoder": _decoder(model),
        "model": _bpe(model) if model.model_type == BPE else _unigram(model),
    }


def _added(token: str, number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **flags, "special": True}


def _normalizer(model: SentencePieceModel) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        steps += _rules(model)
    if model.remove_extra_whitespaces:
        # At the end also U+2581 itself, because sentencepiece checks there after it has escaped blanks.
        steps += [_replace(" {2,}", " "), _replace(r"\A +", ""), _replace(rf"[ {_BLANK}]+\z", "")]
    space = _BLANK if model.escape_whitespaces else " "
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": space})
    if model.escape_whitespaces:
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _BLANK})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _rules(model: SentencePieceModel) -> list[dict[str, Any]]:
    """Return the normalization rules.

    sentencepiece's two own sets of rules are written out, because `tokenizers` interprets the compiled ones differently:
    it looks up a short grapheme as a whole, applies the first rule that matches its beginning, and drops the rest (a mark
    after U+FFFD, a line feed after a carriage return).
    """
    if model.rules == "nfkc":
        return [{"type": "NFKC"}]
    if model.rules == "nmt_nfkc":
        kept = [
            {"type": "Replace", "pattern": {"String": a}, "content": b}
            for a, b in (("\uff5e", _UNASSIGNED), (_UNASSIGNED, "\uff5e"))
        ]
        return [_replace(_REMOVED, ""), _replace(_BLANKS, " "), kept[0], {"type": "NFKC"}, kept[1]]
    return [{"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()}]


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _pre_tokenizer(model: SentencePieceModel) -> dict[str, Any] | None:
    patterns = []
    symbols = sorted((model.pieces[i].text for i in model.ids_of(USER_DEFINED)), key=len, reverse=True)
    if model.model_type != BPE:
        patterns = [_BYTE_NAME] if model.ids_of(BYTE) else []
    elif symbols:  # BPE never merges a symbol with its neighbors; between two symbols the name of a byte would be alone
        patterns = ["|".join(map(re.escape, symbols)), _BYTE_NAME_ALONE]
    cuts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": cuts} if cuts else None


def _post_processor(ids: dict[str, int], before: list[str], after: list[str]) -> dict[str, Any] | None:
    if not before and not after:
        return None

    def around(name: str, number: int) -> list[dict[str, Any]]:
        parts = [[{"SpecialToken": {"id": token, "type_id": number}} for token in part] for part in (before, after)]
        return [*parts[0], {"Sequence": {"id": name, "type_id": number}}, *parts[1]]

    tokens = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in [*before, *after]}
    pair = [*around("A", 0), *around("B", 1)]
    return {"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": tokens}


def _decoder(model: SentencePieceModel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if model.escape_whitespaces:
        steps.append({"type": "Replace", "pattern": {"String": _BLANK}, "content": " "})
    if model.ids_of(BYTE):
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if model.remove_extra_whitespaces or model.add_dummy_prefix:
        blanks = _MANY if model.remove_extra_whitespaces else 1
        steps.append({"type": "Strip", "content": " ", "start": blanks, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _bpe(model: SentencePieceModel) -> dict[str, Any]:
    unknown = model.ids_of(UNKNOWN)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.pieces[unknown[0]].text if unknown else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": bool(model.ids_of(BYTE)),
        # A user-defined symbol, split off before, is found as a whole: no merges lead to it.
        "ignore_merges": bool(model.ids_of(USER_DEFINED)),
        "vocab": {piece.text: number for number, piece in enumerate(model.pieces)},
        "merges": _merges(model),
    }


def _merges(model: SentencePieceModel) -> list[list[str]]:
    """Return every pair of pieces that forms a third, the best piece first.

    sentencepiece merges the neighbors whose union has the highest score; `tokenizers` merges the pair that is first in
    its list.
    """
    ids = {piece.text: number for number, piece in enumerate(model.pieces) if piece.type == NORMAL}
    found = []
    for text, number in ids.items():
        for at in range(1, len(text)):
            left, right = ids.get(text[:at]), ids.get(text[at:])
            if left is not None and right is not None:
                found.append((-model.pieces[number].score, number, left, right))
    return [[model.pieces[left].text, model.pieces[right].text] for _, _, left, right in sorted(found)]


def _unigram(model: SentencePieceModel) -> dict[str, Any]:
    vocabulary = [
        [piece.text, _bonus(piece.text) if piece.type == USER_DEFINED else piece.score] for piece in model.pieces
    ]
    unknown = model.ids_of(UNKNOWN)
    return {
        "type": "Unigram",
        "unk_id": unknown[0] if unknown else None,
        "vocab": vocabulary,
        "byte_fallback": bool(model.ids_of(BYTE)),
    }


def _bonus(symbol: str) -> float:
    """Return the score of a user-defined symbol in sentencepiece's unigram model.

    Determined by experiment with 0.2.3, on symbols of blanks, which compete with each other.
    """
    return 0.1 * len(symbol.encode()) - 0.1
