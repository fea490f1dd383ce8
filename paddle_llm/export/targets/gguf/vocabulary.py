"""The tokenizer of a GGUF file, from the content of a tokenizer.json.

llama.cpp has its own implementations of tokenizers, chosen by `tokenizer.ggml.model`, and a fixed list of rules that split a
text into words, chosen by `tokenizer.ggml.pre` (llama.cpp, src/llama-vocab.cpp). A tokenizer to which llama.cpp would give other
ids is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paddle_llm.core.errors import UserError

_SPACE = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # llama.cpp's types of tokens
_LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
# What splits a text into words -> llama.cpp's name of the rules.
_RULES = {
    ("gpt-2",): "gpt-2",
    ("digits", "gpt-2"): "smollm",
    (_LLAMA_3,): "llama-bpe",
    (_QWEN_2,): "qwen2",
}


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer as metadata of a GGUF file.

    Attributes:
        model: "llama" (sentencepiece's BPE: merges by the scores of the results) or "gpt2" (BPE over bytes).
        rules: Value of `tokenizer.ggml.pre`.
        tokens: Text of each token; as many as the network has embeddings.
        types: llama.cpp's type of each token.
        scores: Score of each token for "llama"; [] for "gpt2".
        merges: Pairs joined by a blank for "gpt2"; [] for "llama".
        space_prefix: Whether a blank is put before a text.
        normalizes: Whether the tokenizer composes characters (NFC) first, which llama.cpp does not.
    """

    model: str
    rules: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    space_prefix: bool
    normalizes: bool


def vocabulary_of(content: dict[str, Any], size: int) -> Vocabulary:
    """Return the tokenizer for a GGUF file.

    Args:
        content: Content of tokenizer.json.
        size: Number of embeddings of the network. Tokens are added up to this number, as unused ones.

    Raises:
        UserError: If llama.cpp has no equal tokenizer.
    """
    model = content["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise _refused(f"its model is {kind}, and llama.cpp runs it with BPE only")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refused(f"its BPE has {key} = {model[key]!r}")
    tokens, types = _tokens(content, size)
    pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    if _is_byte_level(content.get("pre_tokenizer")):
        rules = _rules(content.get("pre_tokenizer"))
        normalizes = _normalizes(content.get("normalizer"))
        merges = [" ".join(pair) for pair in pairs]
        return Vocabulary("gpt2", rules, tokens, types, [], merges, False, normalizes)
    if not model.get("byte_fallback"):
        raise _refused("it has neither BPE over bytes nor tokens for unknown bytes")
    scores = _scores(model["vocab"], pairs, len(tokens))
    return Vocabulary("llama", "default", tokens, types, scores, [], _space_prefix(content), False)


def _tokens(content: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return texts and types of all tokens."""
    model = content["model"]
    texts = {number: text for text, number in model["vocab"].items()}
    types = dict.fromkeys(texts, _NORMAL)
    if model.get("byte_fallback"):
        types |= {model["vocab"][text]: _BYTE for byte in range(256) if (text := f"<0x{byte:02X}>") in model["vocab"]}
    for token in content.get("added_tokens") or []:
        texts[token["id"]] = token["content"]
        types[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            raise _refused(f"its token {token['content']!r} changes the blanks around it")
    if model.get("byte_fallback") and model.get("unk_token") in model["vocab"]:
        types[model["vocab"][model["unk_token"]]] = _UNKNOWN
    beyond = [number for number in texts if number >= size]
    if beyond:
        raise _refused(f"it has the id {max(beyond)}, and the network has {size} embeddings")
    all_texts = [texts.get(number, f"[PAD{number}]") for number in range(size)]
    return all_texts, [types.get(number, _UNUSED) for number in range(size)]


def _scores(vocabulary: dict[str, int], pairs: Sequence[tuple[str, ...]], size: int) -> list[float]:
    """Return scores with which merging by the best result equals merging by the list of pairs.

    Raises:
        UserError: If no scores do: pairs with the same result are apart in the list, or a pair is missing from it.
    """
    scores, order, last = [0.0] * size, 0, None
    for left, right in pairs:
        text = left + right
        if text != last:
            number = vocabulary[text]
            if scores[number]:
                raise _refused(f"its merges to {text!r} are not one after the other")
            order, last = order + 1, text
            scores[number] = -float(order)
    known = {pair[0] + "\0" + pair[1] for pair in pairs}
    for text, number in vocabulary.items():
        if not scores[number]:
            continue
        for at in range(1, len(text)):
            left, right = text[:at], text[at:]
            may_occur = all(
                part in vocabulary and (len(part) == 1 or scores[vocabulary[part]]) for part in (left, right)
            )
            if may_occur and f"{left}\0{right}" not in known:
                raise _refused(f"its merges do not contain {left!r} with {right!r}, which llama.cpp would merge")
    return scores


def _is_byte_level(step: dict[str, Any] | None) -> bool:
    return any(one["type"] == "ByteLevel" for one in _steps(step, "pretokenizers"))


def _rules(step: dict[str, Any] | None) -> str:
    """Return llama.cpp's name of the rules that split a text into words.

    Raises:
        UserError: If it has no such rules.
    """
    found: list[str] = []
    for one in _steps(step, "pretokenizers"):
        if one["type"] == "ByteLevel" and not one.get("add_prefix_space"):
            found += ["gpt-2"] if one.get("use_regex", True) else []
        elif one["type"] == "Digits" and one.get("individual_digits"):
            found.append("digits")
        elif one["type"] == "Split" and one.get("behavior") == "Isolated" and not one.get("invert"):
            found.append(str(one["pattern"].get("Regex")))
        else:
            found.append(str(one))
    name = _RULES.get(tuple(found))
    if name is None:
        raise _refused(f"it splits a text into words by rules that llama.cpp does not have: {', '.join(found)}")
    return name


def _normalizes(step: dict[str, Any] | None) -> bool:
    """Return whether characters are composed (NFC) before a text is split.

    Raises:
        UserError: If the text is changed in another way.
    """
    kinds = [one["type"] for one in _steps(step, "normalizers")]
    if kinds not in ([], ["NFC"]):
        raise _refused(f"it changes the text first: {', '.join(kinds)}")
    return bool(kinds)


def _space_prefix(content: dict[str, Any]) -> bool:
    """Return whether a blank is put before a text; blanks must be written as U+2581.

    Raises:
        UserError: If the text is changed or split in another way.
    """
    prefix, escapes, others = False, False, []
    for one in _steps(content.get("normalizer"), "normalizers"):
        if one["type"] == "Prepend" and one["prepend"] == _SPACE:
            prefix = True
        elif one["type"] == "Replace" and one["pattern"] == {"String": " "} and one["content"] == _SPACE:
            escapes = True
        else:
            others.append(one["type"])
    for one in _steps(content.get("pre_tokenizer"), "pretokenizers"):
        if one["type"] == "Metaspace" and one.get("replacement") == _SPACE and not one.get("split", True):
            prefix, escapes = one.get("prepend_scheme", "always") != "never", True
        else:
            others.append(one["type"])
    if others or not escapes:
        raise _refused(f"it changes or splits the text in its own way: {', '.join(others) or 'blanks are kept'}")
    return prefix


def _steps(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Return the steps of a sequence, or the only step."""
    if step is None:
        return []
    return [inner for one in step[name] for inner in _steps(one, name)] if step["type"] == "Sequence" else [step]


def _refused(reason: str) -> UserError:
    return UserError(f"--target gguf: llama.cpp cannot run this tokenizer: {reason}. Export with --target hf instead.")
