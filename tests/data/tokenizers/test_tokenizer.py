"""Tokenizers: training, loading with PaddleNLP, equality of the fast encoder, fingerprints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.encode import PaddleNLPEncoder, SentencePieceEncoder, open_encoder
from paddle_llm.data.tokenizer import find_fingerprint, fingerprint, load_tokenizer, open_decoder, train_tokenizer
from tests.helpers.corpus import CHINESE, english_and_chinese
from tests.helpers.models.tiny import write_llama

AWKWARD = [
    "plain", "  two blanks lead", "trail  ", "tab\tand\nlines\n\n", "", " ", "emoji \U0001f600 é Ω ﷽", "a\x00b", "▁x <0x0A>",
    "x </s> y", "a<s>b", "<pad>  q", "<unk>", "<s></s>", " <s> ", "</s", "<s>\n<s>  tail", CHINESE,
]  # fmt: skip


def test_paddlenlp_loads_the_folder_as_a_llama_tokenizer(tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert type(tokenizer).__name__ == "LlamaTokenizer"
    assert len(tokenizer) == 700
    ids = tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    assert ids == (0, 1, 2, 3)
    assert tokenizer("hi")["input_ids"][0] == 1


def test_text_survives_a_round_trip(tokenizer_folder: str) -> None:
    encoder, decode = open_encoder(tokenizer_folder), open_decoder(tokenizer_folder)
    for text in [*english_and_chinese(20, seed=7), "龘 \U0001f600\n\ttab 1234"]:
        assert decode(encoder.encode([text])[0]) == text


def test_the_fast_encoder_gives_paddlenlps_ids(tokenizer_folder: str) -> None:
    fast, slow = open_encoder(tokenizer_folder), PaddleNLPEncoder(tokenizer_folder)
    assert isinstance(fast, SentencePieceEncoder)
    assert (fast.vocab_size, fast.eos_id) == (slow.vocab_size, slow.eos_id)
    texts = [*AWKWARD, *english_and_chinese(40, seed=3)]
    for text, a, b in zip(texts, fast.encode(texts), slow.encode(texts), strict=True):
        assert a.tolist() == b.tolist(), text


def test_a_special_token_after_the_vocabulary_is_read_by_paddlenlp(tokenizer_folder: str, tmp_path: Path) -> None:
    folder = tmp_path / "tok"
    shutil.copytree(tokenizer_folder, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["additional_special_tokens"] = ["<|user|>"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    encoder = open_encoder(str(folder))
    assert isinstance(encoder, PaddleNLPEncoder)
    assert 700 in encoder.encode(["hi <|user|> there"])[0]


def test_fingerprint_follows_the_vocabulary_not_the_files(tokenizer_folder: str, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(tokenizer_folder, copied)
    (copied / "sentencepiece.bpe.model").rename(copied / "tokenizer.model")
    assert fingerprint(str(copied)) == fingerprint(tokenizer_folder)
    train_tokenizer(english_and_chinese(300, seed=1), str(tmp_path / "other"), 700)
    assert fingerprint(str(tmp_path / "other")) != fingerprint(tokenizer_folder)
    config = json.loads((copied / "tokenizer_config.json").read_text())
    (copied / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": None}))
    write_llama(copied)
    (copied / "tokenizer.model").rename(copied / "sentencepiece.bpe.model")
    assert fingerprint(str(copied)) == fingerprint(tokenizer_folder), "when PaddleNLP goes by the model's type"
    assert find_fingerprint(str(tmp_path)) is None
    assert find_fingerprint(None) is None


def test_training_twice_gives_the_same_model(tokenizer_folder: str, tmp_path: Path) -> None:
    train_tokenizer(english_and_chinese(300), str(tmp_path / "again"), 700)
    assert fingerprint(str(tmp_path / "again")) == fingerprint(tokenizer_folder)


def test_bpe_and_overwrite(tmp_path: Path) -> None:
    folder = str(tmp_path / "bpe")
    train_tokenizer(english_and_chinese(200), folder, 600, model_type="bpe")
    assert open_encoder(folder).vocab_size == 600
    with pytest.raises(UserError, match="contains a tokenizer already"):
        train_tokenizer(english_and_chinese(200), folder, 500)
    train_tokenizer(english_and_chinese(200), folder, 500, overwrite=True)
    assert open_encoder(folder).vocab_size == 500


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (["a few words only"], 5000, "at most"),
        ([CHINESE * 3], 280, "special tokens, bytes and characters of the text need"),
        (["", "\n"], 300, "no text"),
    ],
)
def test_untrainable_text_is_an_error_with_the_reason(
    tmp_path: Path, texts: list[str], size: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_tokenizer(texts, str(tmp_path / "t"), size)
    assert not (tmp_path / "t").exists()


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"no tokenizer_config\.json"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')
    with pytest.raises(UserError, match="cannot load it"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        fingerprint(str(tmp_path))
