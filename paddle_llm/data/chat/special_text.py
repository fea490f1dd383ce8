"""Distinguishes the text of special tokens in content from the special tokens that a template writes.

A marker (a private-use character) is inserted into each such text in the content before rendering. If the rendering
without markers equals that of the plain content, the markers show which special-token texts are content. A template
that inspects such text (splits at it, or measures it) renders differently; then the two cannot be distinguished, which
is reported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paddle_llm.core.artifacts import TOKENIZER_CONFIG, TOKENIZER_JSON
from paddle_llm.core.json_files import parse_json


def special_pattern(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern for texts of special tokens, longest first; None if there are none. Skips single characters."""
    found = sorted({token for token in tokens if len(token) > 1}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None


def find_special_text(value: object, pattern: re.Pattern[str] | None) -> list[str]:
    """Return the special-token texts in a value (text, list or mapping), in order."""
    if pattern is None:
        return []
    if isinstance(value, str):
        return pattern.findall(value)
    if isinstance(value, Mapping):
        return [text for one in value.values() for text in find_special_text(one, pattern)]
    if isinstance(value, list | tuple):
        return [text for one in value for text in find_special_text(one, pattern)]
    return []


def unused_characters(text: str, count: int) -> str:
    """Return `count` private-use characters that a text does not contain."""
    used = set(text)
    return "".join(
        character for character in map(chr, range(0xE000, 0xE000 + count + len(used))) if character not in used
    )[:count]


def with_markers(value: Any, pattern: re.Pattern[str], marker: str) -> Any:
    """Insert a marker after the first character of each special-token text in a value. Keys are not changed."""
    if isinstance(value, str):
        return pattern.sub(lambda match: match[0][0] + marker + match[0][1:], value)
    if isinstance(value, Mapping):
        return {key: with_markers(one, pattern, marker) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [with_markers(one, pattern, marker) for one in value]
    return value


class WithoutMarkers:
    """A rendering with its markers removed.

    Attributes:
        text: Text without markers.
        cuts: Positions of the markers in `text`.
    """

    def __init__(self, marked: str, marker: str | None) -> None:
        self._markers: list[tuple[int, int]] = []
        if marker is not None:
            # As text, or as written by `tojson(ensure_ascii=True)`.
            found = re.finditer(f"{marker}|{re.escape(json.dumps(marker)[1:-1])}", marked)
            self._markers = [match.span() for match in found]
        pieces, at = [], 0
        cuts = []
        for begin, end in self._markers:
            pieces.append(marked[at:begin])
            at = end
            cuts.append(sum(map(len, pieces)))
        self.text = "".join([*pieces, marked[at:]])
        self.cuts = tuple(cuts)

    def position(self, marked: int) -> int:
        """Convert a position in the rendering with markers to a position in `text`."""
        return marked - sum(min(end, marked) - begin for begin, end in self._markers if begin < marked)


def ordinary_added_tokens(folder: str | None) -> frozenset[str]:
    """Return added tokens that are not special, such as <think> or <tool_call>; content may write them as tokens."""
    found: dict[str, bool] = {}
    for name in (TOKENIZER_JSON, TOKENIZER_CONFIG):
        file = Path(folder or "") / name
        if not folder or not file.is_file():
            continue
        try:
            values = parse_json(file.read_text(encoding="utf-8"))
        except ValueError:
            continue  # reported when the tokenizer is loaded
        if not isinstance(values, dict):
            continue
        tokens = values.get("added_tokens") if name == TOKENIZER_JSON else values.get("added_tokens_decoder")
        for token in tokens.values() if isinstance(tokens, dict) else tokens or []:
            if isinstance(token, dict) and isinstance(token.get("content"), str):
                found[token["content"]] = bool(token.get("special"))
    return frozenset(token for token, special in found.items() if not special)
