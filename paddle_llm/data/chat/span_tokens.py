"""Encodes a rendered conversation as token ids and maps spans of characters to spans of tokens."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from paddle_llm.data.tokenizers.text_codec import TextCodec


def encode_with_spans(
    codec: TextCodec, text: str, cuts: Sequence[int], spans: Sequence[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Encode a whole rendering at once, as `apply_chat_template` does, so that answer boundaries change no token.

    Args:
        codec: Codec of the tokenizer.
        text: Rendered text.
        cuts: Positions at which the text is split, so that the text of a special token stays text.
        spans: Begin and end of each span in characters, in ascending order.

    Returns:
        The ids, and for each span its first token and the token after its last. A token that lies partly in a span
        belongs to it.
    """
    ids: list[int] = []
    found: list[int] = []
    positions = [(position, is_end) for span in spans for position, is_end in zip(span, (False, True), strict=True)]
    edges = [0, *cuts, len(text)]
    for number, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
        part, start, is_last = text[begin:end], number == 0, number == len(edges) - 2
        encoded = codec.encode_with_offsets(part, start)
        part_ids = codec.encode_with_specials(part, start=start) if encoded is None else encoded[0]
        while len(found) < len(positions) and (positions[len(found)][0] < end or is_last):
            position, is_end = positions[len(found)]
            if encoded is None:
                inside = _tokens_before(codec, part, position - begin, part_ids, start, is_end)
            else:
                inside = _by_offsets(encoded[1], position - begin, is_end)
            found.append(len(ids) + inside)
        ids += part_ids
    return ids, list(zip(found[::2], found[1::2], strict=True))


def _by_offsets(offsets: list[tuple[int, int]], position: int, is_end: bool) -> int:
    """Return the number of tokens that begin before a span's end, or that end at or before a span's begin."""
    if is_end:
        return bisect_left(list(accumulate((begin for begin, _ in offsets), max)), position)
    return bisect_right(list(accumulate((end for _, end in offsets), max)), position)


def _tokens_before(codec: TextCodec, text: str, position: int, ids: list[int], start: bool, is_end: bool) -> int:
    """Do the same for a tokenizer without offsets: encode the text before the position separately."""
    if position >= len(text) or position <= 0:
        return len(ids) if position > 0 else 0
    before = codec.encode_with_specials(text[:position], start=start)
    if ids[: len(before)] == before:
        return len(before)
    # A token crosses the position. It is the first one that makes the text longer than the text before the position.
    count = next((n for n, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b), min(len(ids), len(before)))
    target = len(codec.show(before))
    while count < len(ids) and len(codec.show(ids[: count + 1])) <= target:
        count += 1
    return count + is_end
