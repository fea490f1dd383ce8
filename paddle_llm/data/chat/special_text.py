"""Special-token text inside content, told apart from the special tokens that a template writes.

A mark (a private-use character) is put into each occurrence in the content before rendering. Where the rendering without marks is
the one that the template makes of the plain content, the marks show which special-token texts are content. A template that looks
at such text (splits at it, or measures it) renders differently; then the two cannot be told apart, which is reported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paddle_llm.core.artifacts import TOKENIZER_CONFIG, TOKENIZER_JSON
from paddle_llm.core.json_files import parse_json


def pattern_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for the texts of special tokens, longest first; None without any. Single characters are not protected."""
    found = sorted({token for token in tokens if len(token) > 1}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None


def has_special_text(value: Any, pattern: re.Pattern[str] | None) -> list[str]:
    """The special-token texts in a value (text, list or mapping), in order."""
    if pattern is None:
        return []
    if isinstance(value, str):
        return pattern.findall(value)
    if isinstance(value, Mapping):
        return [text for one in value.values() for text in has_special_text(one, pattern)]
    if isinstance(value, list | tuple):
        return [text for one in value for text in has_special_text(one, pattern)]
    return []


def unused_characters(text: str, count: int) -> str:
    """Private-use characters that a text does not contain."""
    used = set(text)
    return "".join(
        character for character in map(chr, range(0xE000, 0xE000 + count + len(used))) if character not in used
    )[:count]


def with_marks(value: Any, pattern: re.Pattern[str], mark: str) -> Any:
    """The value with a mark behind the first character of each special-token text. Keys stay."""
    if isinstance(value, str):
        return pattern.sub(lambda match: match[0][0] + mark + match[0][1:], value)
    if isinstance(value, Mapping):
        return {key: with_marks(one, pattern, mark) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [with_marks(one, pattern, mark) for one in value]
    return value


class Unmarked:
    """A rendering with its marks taken out.

    Attributes:
        text: The text without marks.
        cuts: Where the marks were, in `text`.
    """

    def __init__(self, marked: str, mark: str | None):
        self._marks: list[tuple[int, int]] = []
        if mark is not None:
            # As text, or as `tojson(ensure_ascii=True)` writes it.
            found = re.finditer(f"{mark}|{re.escape(json.dumps(mark)[1:-1])}", marked)
            self._marks = [match.span() for match in found]
        pieces, at = [], 0
        cuts = []
        for begin, end in self._marks:
            pieces.append(marked[at:begin])
            at = end
            cuts.append(sum(map(len, pieces)))
        self.text = "".join([*pieces, marked[at:]])
        self.cuts = tuple(cuts)

    def position(self, marked: int) -> int:
        """A position of the rendering with marks, in `text`."""
        return marked - sum(min(end, marked) - begin for begin, end in self._marks if begin < marked)


def ordinary_added_tokens(folder: str | None) -> frozenset[str]:
    """Added tokens of a tokenizer that are not special, such as <think> or <tool_call>: text that content may write as tokens."""
    found: dict[str, bool] = {}
    for name in (TOKENIZER_JSON, TOKENIZER_CONFIG):
        file = Path(folder or "") / name
        if not folder or not file.is_file():
            continue
        try:
            values = parse_json(file.read_text(encoding="utf-8"))
        except ValueError:
            continue  # refused where the tokenizer is loaded
        if not isinstance(values, dict):
            continue
        tokens = values.get("added_tokens") if name == TOKENIZER_JSON else values.get("added_tokens_decoder")
        for token in tokens.values() if isinstance(tokens, dict) else tokens or []:
            if isinstance(token, dict) and isinstance(token.get("content"), str):
                found[token["content"]] = bool(token.get("special"))
    return frozenset(token for token, special in found.items() if not special)
