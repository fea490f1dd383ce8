"""A rendered conversation as token ids, with the tokens in which given characters lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from paddle_llm.data.text_codec import TextCodec


class Boundary(NamedTuple):
    """A position of a text among its tokens.

    Attributes:
        before: Number of tokens that end at or before the position.
        split: Whether the position lies inside the token that follows these.
    """

    before: int
    split: bool


def encode_rendered(
    codec: TextCodec, text: str, cuts: Sequence[int], positions: Sequence[int]
) -> tuple[list[int], list[Boundary]]:
    """Encode a whole rendering at once, as `apply_chat_template` does, so that no boundary of an answer changes a token.

    Args:
        cuts: Positions at which the text is cut, so that a special-token text stays text.
        positions: Positions in the text, rising.

    Returns:
        The ids, and where each position lies among them.
    """
    ids: list[int] = []
    found: list[Boundary] = []
    edges = [0, *cuts, len(text)]
    for number, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
        part = codec.encode_with_marks(text[begin:end], start=number == 0)
        is_last = number == len(edges) - 2
        while len(found) < len(positions) and (positions[len(found)] < end or is_last):
            inside = positions[len(found)] - begin
            before, split = _boundary(codec, text[begin:end], inside, part, start=number == 0)
            found.append(Boundary(len(ids) + before, split))
        ids += part
    return ids, found


def _boundary(codec: TextCodec, text: str, position: int, ids: list[int], *, start: bool) -> Boundary:
    if position >= len(text):
        return Boundary(len(ids), False)
    if position <= 0:
        return Boundary(0, False)
    before = codec.encode_with_marks(text[:position], start=start)
    if ids[: len(before)] == before:
        return Boundary(len(before), False)
    # A token lies on both sides. It is the first one with which the text is longer than the text before the position.
    count = next((n for n, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b), min(len(ids), len(before)))
    target = len(codec.show(before))
    while count < len(ids) and len(codec.show(ids[: count + 1])) <= target:
        count += 1
    return Boundary(count, True)
