"""Converts byte-level BPE to tokenizer.json.

Sources are vocab.json and merges.txt (GPT-2, OPT, BLOOM, Qwen2) or tiktoken's ranks (LLaMA 3).

Each family splits text into words with its own regular expression, taken from its published tokenizer.json.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_llm.core.errors import UserError

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
_LLAMA3_SPECIALS = 256
_SPLIT_PATTERNS = {"Qwen2Tokenizer": _QWEN2}  # for BLOOM, OPT and GLM, PaddleNLP splits as GPT-2 does


@dataclass(frozen=True)
class _Processing:
    """Processing of a text before and after the merges.

    Attributes:
        split_pattern: Regular expression of words; None for GPT-2's.
        prefix_tokens: Special tokens before every text.
        normalizer: Normalizer in the form of tokenizer.json; None if text is not normalized.
        prefix_space: Whether a blank is put before a text.
    """

    split_pattern: str | None
    prefix_tokens: list[str]
    normalizer: dict[str, Any] | None
    prefix_space: bool


def from_vocabulary(
    config: dict[str, Any], ids: dict[str, int], merges: Path, specials: dict[str, int], names: dict[str, str]
) -> dict[str, Any]:
    """Return tokenizer.json for vocab.json and merges.txt.

    Args:
        config: Content of tokenizer_config.json, whose tokenizer_class determines how texts are split.
        ids: Content of vocab.json.
        merges: Path of merges.txt.
        specials: Special tokens and their ids.
        names: Tokens by name (bos_token, ...).

    Raises:
        UserError: If a line of merges.txt is not a pair.
    """
    lines = [
        line for line in merges.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#version")
    ]
    pairs = [line.split(" ") for line in lines]
    broken = next((number for number, pair in enumerate(pairs, 1) if len(pair) != 2), None)
    if broken is not None:
        raise UserError(f"{merges}, line {broken}: not a pair: {lines[broken - 1]!r}. Copy the file again.")
    bos = names.get("bos_token")
    prefix_tokens = [bos] if config.get("add_bos_token") and bos in specials else []
    kind = str(config.get("init_class") or config.get("tokenizer_class")).removesuffix("Fast")
    split_pattern = _SPLIT_PATTERNS.get(kind)
    normalizer = {"type": "NFC"} if kind == "Qwen2Tokenizer" else None
    processing = _Processing(split_pattern, prefix_tokens, normalizer, bool(config.get("add_prefix_space")))
    return _assemble(ids, pairs, specials, processing)


def from_tiktoken(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return tokenizer.json for tiktoken's ranks, with LLaMA 3's special tokens after them.

    tiktoken merges the pair whose union has the lowest rank. Therefore every pair that forms a token becomes a merge, in
    the order of ranks.

    Raises:
        UserError: If the file does not contain ranks.
    """
    letters = _letters()
    try:
        lines = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except ValueError as error:
        raise UserError(
            f"{path}: neither a sentencepiece model of LlamaTokenizer nor tiktoken's ranks: {error}. Copy the file again."
        ) from error
    found = []
    for token, rank in ranks.items():
        splits = ((token[:at], token[at:]) for at in range(1, len(token)))
        found += [(rank, ranks[a], ranks[b], a, b) for a, b in splits if a in ranks and b in ranks]

    def as_letters(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    pairs = [[as_letters(a), as_letters(b)] for *_, a, b in sorted(found)]
    specials = {token: len(ranks) + number for number, token in enumerate(llama3_specials())}
    prefix_tokens = ["<|begin_of_text|>"] if config.get("add_bos_token", True) else []
    ids = {as_letters(token): rank for token, rank in ranks.items()}
    # PaddleNLP composes characters before it calls tiktoken; the published tokenizer does not.
    content = _assemble(ids, pairs, specials, _Processing(_LLAMA3, prefix_tokens, {"type": "NFC"}, False))
    content["model"]["ignore_merges"] = True  # like tiktoken: a word that is a token is not split
    return content


def llama3_specials() -> list[str]:
    """Return the 256 special tokens of meta-llama/llama3, llama/tokenizer.py."""
    first = ["begin_of_text", "end_of_text", *(f"reserved_special_token_{i}" for i in range(4))]
    first += ["start_header_id", "end_header_id", "reserved_special_token_4", "eot_id"]
    rest = [f"reserved_special_token_{i}" for i in range(5, _LLAMA3_SPECIALS - 5)]
    return [f"<|{name}|>" for name in [*first, *rest]]


def _assemble(
    ids: dict[str, int], pairs: list[list[str]], specials: dict[str, int], processing: _Processing
) -> dict[str, Any]:
    """Return the content of tokenizer.json.

    Args:
        ids: Ids of the tokens.
        pairs: Merges, the first ones first.
        specials: Ids of the special tokens.
        processing: Processing of a text before and after the merges.
    """
    split_pattern = processing.split_pattern
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = sorted(specials.items(), key=lambda item: item[1])
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": processing.prefix_space,
        "trim_offsets": True,
        "use_regex": split_pattern is None,
    }
    words: dict[str, Any] = byte_level
    if split_pattern is not None:
        split = {"type": "Split", "pattern": {"Regex": split_pattern}, "behavior": "Isolated", "invert": False}
        words = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **flags, "special": True} for token, number in added],
        "normalizer": processing.normalizer,
        "pre_tokenizer": words,
        "post_processor": _post_processor(specials, processing.prefix_tokens),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {**model, "vocab": ids, "merges": pairs},
    }


def _post_processor(ids: dict[str, int], prefix_tokens: list[str]) -> dict[str, Any] | None:
    if not prefix_tokens:
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    marks = [{"SpecialToken": {"id": token, "type_id": 0}} for token in prefix_tokens]
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    tokens = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in prefix_tokens}
    return {
        "type": "TemplateProcessing",
        "single": [*marks, a],
        "pair": [*marks, a, *marks, b],
        "special_tokens": tokens,
    }


def _letters() -> dict[int, str]:
    """Return the letter for each byte in GPT-2's vocabulary: itself if printable, else a character from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + number) for number, byte in enumerate(hidden)}
