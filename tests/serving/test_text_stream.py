"""The text of tokens that arrive one by one: pieces that join to the whole text, and stop strings."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.serving.text_stream import TextStream


@pytest.fixture(scope="module")
def codec(llama):
    return open_codec(str(llama))


def streamed(codec, tokens, before=(), stops=()) -> tuple[list[str], TextStream]:
    stream = TextStream(codec, before, stops)
    pieces = [stream.add(token) for token in tokens]
    return [*pieces, stream.finish()], stream


def test_pieces_of_any_tokens_join_to_the_decoded_text(codec):
    random = np.random.default_rng(0)
    for _ in range(200):
        tokens = random.integers(4, 401, random.integers(1, 40)).tolist()
        pieces, stream = streamed(codec, tokens)
        assert "".join(pieces) == codec.decode(tokens) == stream.text


def test_characters_of_several_tokens_are_complete(codec):
    text = "naïve 你好 🙂 end"
    pieces, _ = streamed(codec, codec.encode(text))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    assert sum(map(bool, pieces)) > 5


def test_text_after_a_prompt_keeps_its_blank(codec):
    whole = codec.encode("The class statement defines an object")
    for at in range(1, len(whole)):
        pieces, _ = streamed(codec, whole[at:], whole[:at])
        assert codec.decode(whole[:at]) + "".join(pieces) == codec.decode(whole)


@pytest.mark.parametrize(
    "stops", [["object"], ["object is", "never"], ["t"], ["is a", " is"], ["zzz"], ["name."], [""]]
)
def test_no_character_of_a_stop_string_is_returned(codec, stops):
    text = "An object is a name."
    found = [text.find(stop) for stop in stops if stop and stop in text]
    expected = text[: min(found)] if found else text
    pieces, stream = streamed(codec, codec.encode(text), stops=stops)
    assert "".join(pieces) == stream.text == expected and stream.stopped == bool(found)
    sent = ""
    for piece in pieces:
        sent += piece
        assert expected.startswith(sent)
