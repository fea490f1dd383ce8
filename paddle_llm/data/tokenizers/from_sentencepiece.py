"""A sentencepiece model as a tokenizer.json (the format of the `tokenizers` library) that gives the same ids.

The text is normalised as a whole, gets its blank in front by Prepend (not by Metaspace, which gives none to a text that
begins with a blank), and is not cut into words: sentencepiece does not cut it either. What stands behind a special token
is a text of its own, with a blank in front, as in training (data/samples/encode.py) and in Meta's and PaddleNLP's
tokenizers.
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
# What nmt_nfkc does beside NFKC (builder.cc); the full-width tilde it leaves alone.
_REMOVED = r"[\x{1}-\x{8}\x{B}\x{E}-\x{1F}\x{7F}\x{8F}\x{9F}]"
_BLANKS = r"[\t\n\x{C}\r\x{61C}\x{1680}\x{200B}\x{200C}\x{200E}\x{200F}\x{2028}\x{2029}\x{2581}\x{FEFF}\x{FFFD}]"
_HIDDEN = "\ufff0"  # not assigned
# A text may spell what a byte is called in the vocabulary. Cut behind the "<" it cannot be taken for it.
_SPELLED_BYTE = "(?<=<)(?=0x[0-9A-F]{2}>)"
_ALONE = r"\A<(?=0x[0-9A-F]{2}>\z)"


def tokenizer_json(
    model: SentencePieceModel,
    added: dict[str, int],
    before: Iterable[str] = (),
    behind: Iterable[str] = (),
) -> dict[str, Any]:
    """The content of tokenizer.json.

    Args:
        added: special tokens, and what stands behind the model's own pieces, with their ids. They are found in a text
            before all else.
        before, behind: special tokens that every text gets.
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
        "post_processor": _post_processor({**known, **ids}, list(before), list(behind)),
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
        # At the end also U+2581 itself: sentencepiece looks there after it has written blanks so.
        steps += [_replace(" {2,}", " "), _replace(r"\A +", ""), _replace(rf"[ {_BLANK}]+\z", "")]
    space = _BLANK if model.escape_whitespaces else " "
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": space})
    if model.escape_whitespaces:
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _BLANK})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _rules(model: SentencePieceModel) -> list[dict[str, Any]]:
    """The rules of normalisation.

    sentencepiece's own two sets are spelled out: `tokenizers` would read the compiled ones otherwise. It looks a short
    grapheme up as a whole, takes the first rule that fits its beginning, and drops the rest: a mark behind U+FFFD, a
    line feed behind a carriage return.
    """
    if model.rules == "nfkc":
        return [{"type": "NFKC"}]
    if model.rules == "nmt_nfkc":
        kept = [
            {"type": "Replace", "pattern": {"String": a}, "content": b}
            for a, b in (("\uff5e", _HIDDEN), (_HIDDEN, "\uff5e"))
        ]
        return [_replace(_REMOVED, ""), _replace(_BLANKS, " "), kept[0], {"type": "NFKC"}, kept[1]]
    return [{"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()}]


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _pre_tokenizer(model: SentencePieceModel) -> dict[str, Any] | None:
    patterns = []
    symbols = sorted((model.pieces[i].text for i in model.ids_of(USER_DEFINED)), key=len, reverse=True)
    if model.model_type != BPE:
        patterns = [_SPELLED_BYTE] if model.ids_of(BYTE) else []
    elif symbols:  # bpe never joins one with what stands beside it; between two of them a byte's name would stand alone
        patterns = ["|".join(map(re.escape, symbols)), _ALONE]
    cuts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": cuts} if cuts else None


def _post_processor(ids: dict[str, int], before: list[str], behind: list[str]) -> dict[str, Any] | None:
    if not before and not behind:
        return None

    def around(name: str, number: int) -> list[dict[str, Any]]:
        marks = [[{"SpecialToken": {"id": token, "type_id": number}} for token in part] for part in (before, behind)]
        return [*marks[0], {"Sequence": {"id": name, "type_id": number}}, *marks[1]]

    tokens = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in [*before, *behind]}
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
        # A symbol of the user's, cut out before, is found whole: there are no merges that lead to it.
        "ignore_merges": bool(model.ids_of(USER_DEFINED)),
        "vocab": {piece.text: number for number, piece in enumerate(model.pieces)},
        "merges": _merges(model),
    }


def _merges(model: SentencePieceModel) -> list[list[str]]:
    """Every way in which two pieces make a third, the best piece first.

    sentencepiece joins the neighbours whose union has the highest score, wherever they come from; `tokenizers` the pair
    that stands first in its list.
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
    """What sentencepiece's unigram gives to a symbol of the user's: found out by trying (0.2.3), on symbols of blanks,
    which compete with one another."""
    return 0.1 * len(symbol.encode()) - 0.1
