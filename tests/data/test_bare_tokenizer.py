"""A folder of tokenizer.json and of no class of its own: LLaMA 3's, and what transformers' save_pretrained writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from paddle_llm.data.corpus.encode import open_encoder
from paddle_llm.data.tokenizer import fingerprint, load_tokenizer
from paddle_llm.data.tokenizers.text_codec import open_codec

BEGIN, END, TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
SAMPLES = ["The quick brown fox 12345", "  two blanks,\n\ttab", "今天天气很好 😀", f"a {TURN} spelled"]


def like_llama3() -> tokenizers.Tokenizer:
    """Its parts: bytes, a rule that splits words, ids of special tokens behind the pieces, BOS by the post-processor."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    words = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["The quick brown fox jumps over the lazy dog. 123"] * 20, trainer)
    made.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in (BEGIN, END, TURN)])
    begin = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, made.token_to_id(BEGIN))]
    )
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), begin])
    return made


def write_bare(folder: Path, kind: str) -> tokenizers.Tokenizer:
    made = like_llama3()
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": kind, "bos_token": BEGIN, "eos_token": END, "model_max_length": 131072}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return made


def check(folder: Path, made: tokenizers.Tokenizer) -> None:
    loaded, codec, encoder = load_tokenizer(str(folder)), open_codec(str(folder)), open_encoder(str(folder))
    begin, end, turn = (made.token_to_id(name) for name in (BEGIN, END, TURN))
    assert (codec.bos_id, codec.eos_id, codec.prefix_ids) == (begin, end, [begin])
    assert codec.special_id(TURN) == turn and encoder.eos_id == end and encoder.vocab_size == made.get_vocab_size()
    for text in SAMPLES:
        assert loaded(text)["input_ids"] == made.encode(text).ids
        assert codec.decode(codec.encode(text)) == text
        if TURN not in text:
            wanted = made.encode(text, add_special_tokens=False).ids
            assert codec.encode(text) == wanted == encoder.encode([text])[0].tolist()
    assert turn not in codec.encode(SAMPLES[-1])  # a text that spells a mark stays text
    assert codec.decode([*codec.encode("fox"), made.get_vocab_size() + 7]) == "fox\ufffd"


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_tokenizer_json_alone_is_read(kind, tmp_path) -> None:
    made = write_bare(tmp_path / "tokenizer", kind)
    check(tmp_path / "tokenizer", made)


def test_what_a_training_saves_of_it_is_the_same(tmp_path) -> None:
    made = write_bare(tmp_path / "tokenizer", "PreTrainedTokenizerFast")
    load_tokenizer(str(tmp_path / "tokenizer")).save_pretrained(str(tmp_path / "saved"))
    check(tmp_path / "saved", made)
    assert fingerprint(str(tmp_path / "saved")) == fingerprint(str(tmp_path / "tokenizer"))


def test_what_transformers_saves_is_read(tmp_path) -> None:
    import transformers

    made = like_llama3()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token=BEGIN, eos_token=END)
    wrapped.save_pretrained(str(tmp_path / "tokenizer"))
    check(tmp_path / "tokenizer", made)
