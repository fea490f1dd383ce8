"""Folders with only a tokenizer.json and a generic class: like LLaMA 3's, and as saved by transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

from paddle_llm.data.corpus.encode import open_encoder
from paddle_llm.data.tokenizer import fingerprint, load_tokenizer
from paddle_llm.data.tokenizers.text_codec import open_codec
from tests.helpers.chat_tokenizers import BEGIN, END, TURN, like_llama3, write_bare

SAMPLES = ["The quick brown fox 12345", "  two blanks,\n\ttab", "今天天气很好 😀", f"a {TURN} as text"]


def check(folder: Path, reference: tokenizers.Tokenizer) -> None:
    loaded, codec, encoder = load_tokenizer(str(folder)), open_codec(str(folder)), open_encoder(str(folder))
    begin, end, turn = (reference.token_to_id(name) for name in (BEGIN, END, TURN))
    assert (codec.bos_id, codec.eos_id, codec.prefix_ids) == (begin, end, [begin])
    assert codec.special_id(TURN) == turn and encoder.eos_id == end and encoder.vocab_size == reference.get_vocab_size()
    for text in SAMPLES:
        assert loaded(text)["input_ids"] == reference.encode(text).ids
        assert codec.decode(codec.encode(text)) == text
        if TURN not in text:
            expected = reference.encode(text, add_special_tokens=False).ids
            assert codec.encode(text) == expected == encoder.encode([text])[0].tolist()
    assert turn not in codec.encode(SAMPLES[-1])  # text of a special token stays text
    assert codec.decode([*codec.encode("fox"), reference.get_vocab_size() + 7]) == "fox\ufffd"


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_tokenizer_json_alone_is_read(kind, tmp_path) -> None:
    reference = write_bare(tmp_path / "tokenizer", kind)
    check(tmp_path / "tokenizer", reference)


def test_a_saved_tokenizer_is_equal(tmp_path) -> None:
    reference = write_bare(tmp_path / "tokenizer", "PreTrainedTokenizerFast")
    load_tokenizer(str(tmp_path / "tokenizer")).save_pretrained(str(tmp_path / "saved"))
    check(tmp_path / "saved", reference)
    assert fingerprint(str(tmp_path / "saved")) == fingerprint(str(tmp_path / "tokenizer"))


def test_a_tokenizer_saved_by_transformers_is_read(tmp_path) -> None:
    import transformers

    reference = like_llama3()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=reference, bos_token=BEGIN, eos_token=END)
    wrapped.save_pretrained(str(tmp_path / "tokenizer"))
    check(tmp_path / "tokenizer", reference)
