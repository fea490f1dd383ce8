"""tokenizer.json gives the ids of its source tokenizer, for 10,000 texts of English, Chinese, code, emoji and bytes."""

from __future__ import annotations

import base64
import glob
import io
import json
import os
import pydoc_data.topics
import random
import struct
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
import tokenizers

from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizer import load_tokenizer, train_tokenizer
from paddle_llm.data.tokenizers.conversion import check
from paddle_llm.data.tokenizers.conversion.byte_level import llama3_specials
from paddle_llm.data.tokenizers.conversion.tokenizer_json import write_tokenizer
from paddle_llm.data.tokenizers.sentencepiece_model import CONTROL, USER_DEFINED, read_model
from paddle_llm.data.tokenizers.text_codec import SentencePieceCodec, open_codec

ENGLISH = "\n".join(pydoc_data.topics.topics.values())
CHINESE = "\n".join(
    p.read_text(encoding="utf-8") for p in sorted((Path(__file__).parents[2] / "docs/zh").rglob("*.md"))
)
CODE = "\n".join(
    Path(p).read_text(encoding="utf-8") for p in sorted(glob.glob(f"{os.path.dirname(glob.__file__)}/[a-c]*.py"))[:8]
)
EMOJI = [
    *map(chr, range(0x1F300, 0x1F650)),
    "👩‍👩‍👧",
    "🇨🇳",
    "👍🏽",
    "e\u0301",
    "é",
    "ﬁ",
    "Ａ",
    "　",
    "\u00a0",
    "\u2581",
    "<0x41>",
    "\r\n",
]
NUMBER = 10_000


def texts(number: int = NUMBER) -> list[str]:
    """A sixth each of English, Chinese, code, emoji, random bytes read as text, and runs of blanks, digits and
    signs."""
    chance = random.Random(0)

    def part(of: str) -> str:
        start = chance.randrange(len(of))
        return of[start : start + chance.randrange(1, 200)]

    def drawn(of: list[str], most: int) -> str:
        return "".join(chance.choice(of) for _ in range(chance.randrange(1, most)))

    makers = (
        lambda: part(ENGLISH),
        lambda: part(CHINESE),
        lambda: part(CODE),
        lambda: drawn(
            [*EMOJI, " ", "a", "中", "\n"] if chance.random() < 0.5 else [chance.choice(EMOJI), " ", "b"], 40
        ),
        lambda: bytes(chance.randrange(256) for _ in range(chance.randrange(1, 60))).decode("utf-8", "replace"),
        lambda: drawn([" ", "  ", "\t", "\n", "aa", "1", "23", "0", " the", "..", "-", "="], 60),
    )
    return [makers[turn % len(makers)]() for turn in range(number)]


def train(folder: Path, kind: str, size: int = 2500, **settings) -> Path:
    """A tokenizer's folder as PaddleNLP has it, of a model with the given settings."""
    model = io.BytesIO()
    lines = (ENGLISH[:400_000] + CHINESE + CODE[:100_000]).splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=size, model_type=kind, minloglevel=2, **settings
    )
    folder.mkdir(parents=True)
    (folder / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def export(folder: Path, out: Path, target: str = "hf") -> tokenizers.Tokenizer:
    out.mkdir(parents=True)
    write_tokenizer(SimpleNamespace(tokenizer=folder, folder=folder, template=None), out, target)
    return tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))


def ids_of(tokenizer: tokenizers.Tokenizer, samples: list[str]) -> list[list[int]]:
    return [one.ids for one in tokenizer.encode_batch(samples, add_special_tokens=False)]


def differing(tokenizer: tokenizers.Tokenizer, processor, samples: list[str]) -> list[int]:
    pairs = zip(ids_of(tokenizer, samples), processor.encode(samples), strict=True)
    return [number for number, (found, wanted) in enumerate(pairs) if found != wanted]


def cut_alike(found, wanted, kind: str) -> bool:
    """Whether all texts have the same ids. The vocabulary is that of a text that changes (docs/zh): unigram may have
    two ways of the same pieces, between which rounding decides."""
    other = [(a, b) for a, b in zip(found, wanted, strict=True) if a != b]
    return not other or (kind == "unigram" and all(sorted(a) == sorted(b) for a, b in other) and len(other) <= 3)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> dict[str, Path]:
    """Return the folder that `paddle-llm tokenizer train` writes."""
    folders = {}
    for kind in ("bpe", "unigram"):
        folders[kind] = tmp_path_factory.mktemp(kind)
        train_tokenizer([ENGLISH[:400_000], CHINESE, CODE[:100_000]], str(folders[kind]), 2500, model_type=kind)
    return folders


SETTINGS = {
    "sentencepiece's defaults": {"character_coverage": 0.995},
    "bytes, nfkc, blanks kept": {
        "byte_fallback": True,
        "normalization_rule_name": "nfkc",
        "remove_extra_whitespaces": False,
    },
    "no blank in front": {"byte_fallback": True, "add_dummy_prefix": False},
    "symbols of the user's": {
        "byte_fallback": True,
        "user_defined_symbols": ["<n>", "[MASK]", "\u2581\u2581", "\u2581\u2581\u2581\u2581"],
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
}


def check_bpe(folder: Path, out: Path) -> None:
    tokenizer = export(folder, out)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    samples = [text.replace("a", "<n>", 1) if turn % 3 else text for turn, text in enumerate(texts())]
    other = differing(tokenizer, processor, samples)
    assert len(samples) == NUMBER and not other, [samples[number] for number in other[:3]]
    ids = processor.encode(samples)
    decoded = tokenizer.decode_batch(ids, skip_special_tokens=True)
    unknown = processor.unk_id()  # the two libraries write it differently
    assert not [n for n, text in enumerate(processor.decode(ids)) if text != decoded[n] and unknown not in ids[n]]


def test_bpe_of_ours_agrees_on_10_000_texts(ours, tmp_path):
    check_bpe(ours["bpe"], tmp_path / "out")


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_bpe_agrees_on_10_000_texts(settings, tmp_path):
    check_bpe(train(tmp_path / "tokenizer", "bpe", **settings), tmp_path / "out")


@pytest.mark.parametrize("settings", [None, *SETTINGS.values()], ids=["ours", *SETTINGS])
def test_unigram_agrees_but_for_ties(settings, ours, tmp_path):
    """Ways of equal score to cut a text, between which the rounding of sentencepiece's 32 bits decides: the same pieces
    in another order (-------- and then -, or the other way round), or sums that are equal to 7 digits."""
    folder = train(tmp_path / "tokenizer", "unigram", **settings) if settings else ours["unigram"]
    tokenizer = export(folder, tmp_path / "out")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    samples = texts()
    other = differing(tokenizer, processor, samples)
    model = read_model(folder / "sentencepiece.bpe.model")
    found = ids_of(tokenizer, [samples[number] for number in other])
    wanted = processor.encode([samples[number] for number in other])
    assert all(check.is_tie(model, a, b) for a, b in zip(found, wanted, strict=True))
    assert len(other) < (0.005 if "<n>" not in str(settings) else 0.02) * NUMBER
    assert tokenizer.decode_batch(found) == tokenizer.decode_batch(wanted)


def test_a_broken_conversion_is_refused(ours, tmp_path, monkeypatch):
    """The export's own check detects it: here the merges are in another order."""
    from paddle_llm.data.tokenizers.conversion import from_sentencepiece

    right = from_sentencepiece._merges
    monkeypatch.setattr(from_sentencepiece, "_merges", lambda model: right(model)[::-1])
    with pytest.raises(UserError, match="sample texts get other ids.*tokens that it was not trained on"):
        export(ours["bpe"], tmp_path / "out")


def test_few_differences_are_reported(ours, tmp_path, monkeypatch, capsys):
    from paddle_llm.data.tokenizers.conversion import from_sentencepiece

    right = from_sentencepiece._merges
    export(ours["bpe"], tmp_path / "right")
    assert "sample texts" not in capsys.readouterr().err
    monkeypatch.setattr(from_sentencepiece, "_merges", lambda model: right(model)[:-8])
    export(ours["bpe"], tmp_path / "wrong")
    assert "sample texts get other ids from tokenizer.json than from" in capsys.readouterr().err


def test_pieces_with_equal_scores_are_reported(ours, tmp_path, capsys):
    """A vocabulary put together of two, as Chinese LLaMA's: what was added has the score 0, all of it."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    content = (ours["bpe"] / "sentencepiece.bpe.model").read_bytes()
    known = {piece.text for piece in read_model(ours["bpe"] / "sentencepiece.bpe.model").pieces}
    chance = random.Random(0)
    for _ in range(1500):
        start = chance.randrange(len(CHINESE))
        text = CHINESE[start : start + chance.choice((2, 3))].replace(" ", "\u2581")
        if text not in known and "\n" not in text:
            known.add(text)
            piece = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15" + struct.pack("<f", 0.0)
            content += b"\x0a" + bytes([len(piece)]) + piece
    (folder / "sentencepiece.bpe.model").write_bytes(content)
    (folder / "tokenizer_config.json").write_bytes((ours["bpe"] / "tokenizer_config.json").read_bytes())
    export(folder, tmp_path / "out")
    printed = capsys.readouterr().err
    assert "pieces share a score; sentencepiece merges the leftmost of them first" in printed
    assert "sample texts get other ids from tokenizer.json" in printed


def test_the_same_twice(ours, tmp_path):
    for name in ("a", "b"):
        export(ours["unigram"], tmp_path / name)
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("a", "b")]
    assert (
        files[0]
        == files[1]
        == ["special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    )
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files[0])


# ---- special tokens -------------------------------------------------------------------------------------------------


def test_special_tokens_are_added_around_a_text_as_in_the_source(ours, tmp_path):
    for adds_bos, adds_eos, around in ((True, False, [1]), (False, False, []), (True, True, [1, 2])):
        folder = tmp_path / f"{adds_bos}{adds_eos}"
        folder.mkdir()
        for file in ours["bpe"].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config |= {"add_bos_token": adds_bos, "add_eos_token": adds_eos}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = export(folder, folder / "out")
        assert tokenizer.encode("").ids == around
        assert tokenizer.encode("Hello").ids == [
            *around[:1],
            *tokenizer.encode("Hello", add_special_tokens=False).ids,
            *around[1:],
        ]
        written = json.loads((folder / "out" / "tokenizer_config.json").read_text())
        assert (written["add_bos_token"], written["add_eos_token"], written["pad_token"]) == (
            adds_bos,
            adds_eos,
            "<pad>",
        )


def test_special_tokens_are_found_in_a_text_and_start_a_new_word(ours, tmp_path):
    """As in training (TextCodec.encode_with_specials) and PaddleNLP's tokenizer."""
    tokenizer, codec = export(ours["bpe"], tmp_path / "out"), open_codec(str(ours["bpe"]))
    for text in ("<s>[INST] Hello [/INST] Yes</s><s>[INST] 你好", "a</s>b", "</s> b", "<pad><pad>x"):
        assert tokenizer.encode(text, add_special_tokens=False).ids == codec.encode_with_specials(text), text


def with_added(folder: Path, source: Path, added: dict[str, int]) -> Path:
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


def test_added_tokens_keep_their_ids(ours, tmp_path):
    folder = with_added(tmp_path / "tokenizer", ours["bpe"], {"<|user|>": 2501, "<|end|>": 2500})
    tokenizer = export(folder, tmp_path / "out")
    assert tokenizer.token_to_id("<|user|>") == 2501 and tokenizer.get_vocab_size() == 2502
    ids = tokenizer.encode("<|user|>Hi<|end|>", add_special_tokens=False).ids
    assert ids[0] == 2501 and ids[-1] == 2500 and tokenizer.decode(ids) == "Hi"
    assert open_codec(str(folder)).special_id("<|user|>") == 2501


def test_a_gap_before_added_tokens_is_refused(ours, tmp_path):
    folder = with_added(tmp_path / "tokenizer", ours["bpe"], {"<|user|>": 2503})
    with pytest.raises(UserError, match=r"ids \[2503\] after a vocabulary of 2500.*without gaps"):
        export(folder, tmp_path / "out")


# ---- what reads it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_transformers_gives_the_same_ids(kind, ours, tmp_path):
    import transformers

    export(ours[kind], tmp_path / "out", "fastdeploy")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    assert len(tokenizer) == 2500
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id) == (
        1,
        2,
        0,
        3,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(ours[kind] / "sentencepiece.bpe.model"))
    assert list(tokenizer("Hello")) == ["input_ids", "attention_mask"]  # all of it goes into `generate`
    samples = texts(600)
    found = tokenizer(samples)["input_ids"]
    wanted = [[1, *ids] for ids in processor.encode(samples)]
    assert cut_alike(found, wanted, kind)
    assert tokenizer.decode(found[0], skip_special_tokens=True) == processor.decode(wanted[0])


def test_fastdeploy_finds_no_model_file_beside_it(ours, tmp_path):
    """sentencepiece.bpe.model would be read as a tokenizer of 3 tokens."""
    export(ours["bpe"], tmp_path / "out", "fastdeploy")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"}


def test_the_export_is_read_here_again(ours, tmp_path):
    """Training reads it with PaddleNLP, everything else with sentencepiece."""
    export(ours["bpe"], tmp_path / "out")
    codec = open_codec(str(tmp_path / "out"))
    wanted = open_codec(str(ours["bpe"])).encode("Hello 世界")
    assert isinstance(codec, SentencePieceCodec) and codec.encode("Hello 世界") == wanted
    assert load_tokenizer(str(tmp_path / "out"))("Hello 世界")["input_ids"] == [1, *wanted]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_folder_without_a_sentencepiece_model_is_read_here_again(kind, ours, tmp_path):
    """FastDeploy's: tokenizer.json alone, for generating, training, and exporting once more."""
    folder = with_added(tmp_path / "tokenizer", ours[kind], {"<|end|>": 2500, "<|user|>": 2501})
    export(folder, tmp_path / "out", "fastdeploy")
    export(tmp_path / "out", tmp_path / "again", "hf")
    source, samples = open_codec(str(folder)), texts(600)
    for place in (tmp_path / "out", tmp_path / "again"):
        codec = open_codec(str(place))
        assert cut_alike(map(codec.encode, samples), map(source.encode, samples), kind)
        assert cut_alike(map(codec.encode_continuation, samples), map(source.encode_continuation, samples), kind)
        assert (codec.prefix_ids, codec.eos_id, codec.pad_id) == (source.prefix_ids, source.eos_id, source.pad_id)
        assert codec.special_id("<|user|>") == 2501 and codec.specials == source.specials
        ids = source.encode("Hello 世界 😀\n\tif x:")
        assert codec.decode(ids) == source.decode(ids)
        assert load_tokenizer(str(place))("Hello 世界")["input_ids"] == [1, *source.encode("Hello 世界")]
    assert (tmp_path / "again" / "tokenizer.json").read_text() == (tmp_path / "out" / "tokenizer.json").read_text()


def test_a_token_that_the_source_does_not_have_is_not_made(tmp_path):
    """PaddleNLP's class would give a BOS an id behind the vocabulary."""
    train(tmp_path / "tokenizer", "bpe", 1000, bos_id=-1, eos_id=1)
    export(tmp_path / "tokenizer", tmp_path / "out", "fastdeploy")
    codec = open_codec(str(tmp_path / "out"))
    assert (codec.bos_id, codec.prefix_ids, codec.eos_id) == (None, [], 1)


def test_hugging_faces_name_of_the_model_file_is_found_by_training(ours, tmp_path):
    """A published LLaMA: LlamaTokenizer with tokenizer.model, which PaddleNLP's class of that name does not look for."""
    (tmp_path / "tokenizer.model").write_bytes((ours["bpe"] / "sentencepiece.bpe.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False}))
    assert load_tokenizer(str(tmp_path))("Hello")["input_ids"] == load_tokenizer(str(ours["bpe"]))("Hello")["input_ids"]


# ---- other kinds ----------------------------------------------------------------------------------------------------


def byte_level(folder: Path, kind: str, **config) -> Path:
    """vocab.json and merges.txt, with three special tokens."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(ENGLISH[:200_000].splitlines(), vocab_size=900, special_tokens=["<s>", "<pad>", "</s>"])
    folder.mkdir()
    trained.save_model(str(folder))
    values = {
        "tokenizer_class": kind,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "</s>",
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**values, **config}))
    return folder


@pytest.mark.parametrize("kind", ["GPTTokenizer", "BloomTokenizer", "Qwen2Tokenizer"])
def test_vocabulary_and_merges(kind, tmp_path):
    folder = byte_level(tmp_path / "tokenizer", kind, add_bos_token=kind == "GPTTokenizer")
    tokenizer, codec = export(folder, tmp_path / "out"), open_codec(str(folder))
    samples = [text for text in texts(600) if not any(mark in text for mark in codec.specials)]
    assert ids_of(tokenizer, samples) == [codec.encode(text) for text in samples]
    assert [one for one in samples if tokenizer.decode(tokenizer.encode(one, add_special_tokens=False).ids) != one] == (
        [one for one in samples if kind == "Qwen2Tokenizer" and unicodedata.normalize("NFC", one) != one]
    )
    assert tokenizer.encode("</s>").ids == ([0, 2] if kind == "GPTTokenizer" else [2])
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert open_codec(str(tmp_path / "out")).encode("Hello") == codec.encode("Hello")  # init_class names PaddleNLP's


def test_ranks_of_tiktoken(tmp_path):
    """LLaMA 3 is compared with its definition: join the pair of a word's bytes whose union has the lowest rank, until no pair has one."""
    import regex

    from paddle_llm.data.tokenizers.conversion.byte_level import _LLAMA3, _letters

    source = byte_level(tmp_path / "bytes", "Qwen2Tokenizer")
    bytes_of = {letter: byte for byte, letter in _letters().items()}
    vocabulary = json.loads((source / "vocab.json").read_text())
    ordered = [
        token for token in sorted(vocabulary, key=vocabulary.get) if not token.startswith("<") or len(token) == 1
    ]
    ranks = {bytes(bytes_of[letter] for letter in token): rank for rank, token in enumerate(ordered)}
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for token, rank in ranks.items()]
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Llama3Tokenizer"}))
    tokenizer = export(folder, tmp_path / "out")

    def ids(text: str) -> list[int]:
        found: list[int] = []
        for word in regex.findall(_LLAMA3, unicodedata.normalize("NFC", text)):
            parts = [bytes([byte]) for byte in word.encode()]
            while word.encode() not in ranks:
                pairs = [
                    (ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks
                ]
                if not pairs:
                    break
                at = min(pairs)[1]
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            found += [ranks[word.encode()]] if word.encode() in ranks else [ranks[part] for part in parts]
        return found

    samples = texts(600)
    assert ids_of(tokenizer, samples) == [ids(text) for text in samples]
    assert len(set(llama3_specials())) == 256
    assert tokenizer.encode("a<|eot_id|>").ids == [len(ranks), *ids("a"), len(ranks) + 9]


def test_a_tokenizer_json_is_carried_over(ours, tmp_path):
    export(ours["bpe"], tmp_path / "first")
    config = json.loads((tmp_path / "first" / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "LlamaTokenizerFast", "legacy": True}
    del config["init_class"]
    (tmp_path / "first" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "first" / "tokenizer.model").unlink()
    export(tmp_path / "first", tmp_path / "second")
    first, second = (tmp_path / name for name in ("first", "second"))
    assert json.loads((first / "tokenizer.json").read_text()) == json.loads((second / "tokenizer.json").read_text())
    assert json.loads((second / "tokenizer_config.json").read_text()) == config


@pytest.mark.parametrize(
    ("kind", "file", "repository"),
    [("ChatGLMTokenizer", "ice_text.model", "chatglm-6b"), ("ChatGLMv2Tokenizer", "tokenizer.model", "chatglm2-6b")],
)
def test_chatglm_has_the_published_files(kind, file, repository, ours, tmp_path, capsys):
    folder, out = tmp_path / "tokenizer", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    (folder / file).write_bytes((ours["bpe"] / "sentencepiece.bpe.model").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    write_tokenizer(SimpleNamespace(tokenizer=folder, folder=folder, template=None), out, "hf")
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "ChatGLMTokenizer" and (out / file).is_file()
    assert config["auto_map"]["AutoTokenizer"] == ["tokenization_chatglm.ChatGLMTokenizer", None]
    printed = capsys.readouterr().err
    assert "trust_remote_code=True" in printed and f"copy tokenization_chatglm.py of THUDM/{repository}" in printed
    codec = open_codec(str(out))
    assert codec.encode("Hello 世界") == open_codec(str(folder)).encode("Hello 世界")
    (folder / "tokenization_chatglm.py").write_text("code")
    write_tokenizer(SimpleNamespace(tokenizer=folder, folder=folder, template=None), out, "hf")
    assert (
        out / "tokenization_chatglm.py"
    ).read_text() == "code" and "the export contains tokenization_chatglm.py" in capsys.readouterr().err
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"{file} is missing"):
        write_tokenizer(SimpleNamespace(tokenizer=folder, folder=folder, template=None), out, "hf")


def test_unreadable_folders_are_refused(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(UserError, match="has no tokenizer.json, no sentencepiece model"):
        export(folder, tmp_path / "a")
    (folder / "tokenizer.model").write_bytes(b"\x00\x01 this is none")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        export(folder, tmp_path / "b")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("char", {}, "Use a unigram or BPE model for the export"),
        ("bpe", {"treat_whitespace_as_suffix": True}, "blanks are after words"),
    ],
)
def test_models_that_tokenizer_json_cannot_express_are_refused(kind, settings, message, tmp_path):
    folder = train(tmp_path / "tokenizer", kind, 700, hard_vocab_limit=False, **settings)
    with pytest.raises(UserError, match=message):
        export(folder, tmp_path / "out")


def test_a_missing_tokenizer_is_reported(tmp_path, capsys):
    write_tokenizer(SimpleNamespace(tokenizer=None, folder=tmp_path, template=None), tmp_path, "hf")
    assert "has no tokenizer" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_model_file_is_read_as_sentencepiece_reads_it(tmp_path):
    folder = train(tmp_path / "tokenizer", "unigram", 600, user_defined_symbols=["<n>"], pad_id=3)
    model = read_model(folder / "sentencepiece.bpe.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    every = range(processor.get_piece_size())
    assert [piece.text for piece in model.pieces] == [processor.id_to_piece(i) for i in every]
    assert [piece.score for piece in model.pieces] == [processor.get_score(i) for i in every]
    assert model.ids_of(CONTROL) == [i for i in every if processor.is_control(i)]
    assert model.ids_of(USER_DEFINED) == [processor.piece_to_id("<n>")]
    assert model.rules == "nmt_nfkc" and model.remove_extra_whitespaces and model.add_dummy_prefix
