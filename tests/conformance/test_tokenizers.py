"""Ids, special ids and decoded text of other people's tokenizer folders equal those of transformers' AutoTokenizer.

The comparison covers what reaches a training sample, a corpus on disk and the text of `generate`.
"""

from __future__ import annotations

import json
import os
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_llm.core.errors import UserError
from paddle_llm.core.transformers_import import import_transformers, repair_sentencepiece_proto
from paddle_llm.data.chat.templates import TEMPLATES
from paddle_llm.data.corpus.build import build_corpus
from paddle_llm.data.corpus.encode import open_encoder
from paddle_llm.data.instructions.conversation import Conversation, Turn
from paddle_llm.data.samples.encode import InstructionEncoder
from paddle_llm.data.tokenizer import fingerprint, load_tokenizer
from paddle_llm.data.tokenizers.conversion.tokenizer_json import write_tokenizer
from paddle_llm.data.tokenizers.folder import Reader, reader_of
from paddle_llm.data.tokenizers.plain_text import NotText
from paddle_llm.data.tokenizers.text_codec import TextCodec, TransformersCodec, open_codec
from tests.conformance import tokenizer_folders as made
from tests.helpers.chat_tokenizers import chatglm3_folder, chatglm_folder

ALL = [
    *made.SENTENCEPIECE_KINDS,
    "bpe map file",
    "bpe map file wins",
    *made.FAST_KINDS,
    *made.TRANSLATED_KINDS,
    *made.VOCABULARY_KINDS,
    "tiktoken beside",
    "no class",
]
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


@cache
def texts() -> list[str]:
    return made.hard_texts(10_000 if THOROUGH else 2_000)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    return made.write_all(tmp_path_factory.mktemp("tokenizers"))


def reference(folder: Path) -> Any:
    """Load a folder with transformers; if 4.55 rejects it, load its tokenizer.json with the named tokens."""
    transformers = import_transformers()
    repair_sentencepiece_proto()
    transformers.utils.logging.set_verbosity_error()
    if folder.name not in made.TRANSLATED_KINDS:
        return transformers.AutoTokenizer.from_pretrained(str(folder))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = {key: config.get(key) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        additional_special_tokens=config.get("extra_special_tokens"),
        **named,
    )


def differing(found: list[Any], wanted: list[Any]) -> list[tuple[str, Any, Any]]:
    """Return the first three texts with different values."""
    rows = zip(texts(), found, wanted, strict=True)
    return [(text, a, b) for text, a, b in rows if list(a) != list(b)][:3]


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of special tokens, without the unknown token, which text may contain."""
    listed = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {*listed, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}


@pytest.mark.parametrize("kind", ALL)
def test_ids_and_text_equal_autotokenizer(kind: str, folders: dict[str, Path]) -> None:
    tokenizer = reference(folders[kind])
    codec, encoder = open_codec(str(folders[kind])), open_encoder(str(folders[kind]))
    assert (codec.bos_id, codec.eos_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert codec.pad_id == (tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    assert (encoder.eos_id, encoder.vocab_size) == (tokenizer.eos_token_id, len(tokenizer))
    marked = tokenizer(texts(), add_special_tokens=False)["input_ids"]
    assert not differing(encoder.encode(texts()), marked), "ids of a document"
    assert not differing([codec.encode_with_specials(text) for text in texts()], marked), "ids of a rendered template"
    whole = tokenizer("lamp")["input_ids"]
    assert whole[: len(codec.prefix_ids) + 1] == [*codec.prefix_ids, *codec.encode("lamp")][: len(codec.prefix_ids) + 1]
    literal = tokenizer(texts(), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    specials = special_ids(tokenizer)
    found = [codec.encode(text) for text in texts()]
    # If the vocabulary has the special token as a piece, transformers wrongly returns its id.
    wanted = [ids if specials.isdisjoint(ids) else own for ids, own in zip(literal, found, strict=True)]
    assert not differing(found, wanted), "ids of text that stays text"
    assert all(specials.isdisjoint(ids) for ids in found)
    shown = tokenizer.batch_decode(marked, skip_special_tokens=True)
    assert not differing([codec.decode(ids) for ids in marked], shown), "decoded text"


@pytest.mark.parametrize(
    "kind", ["bpe", "unigram", *[k for k, (_, c) in made.SENTENCEPIECE_KINDS.items() if "legacy" in c]]
)
def test_paddlenlps_file_name_changes_no_setting(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """A sentencepiece.bpe.model with settings of transformers gives the ids of transformers.

    With sentencepiece alone, only splits of equal score may differ (unigram).
    """
    folder = made.with_paddles_name(folders[kind], tmp_path / "tokenizer")
    tokenizer, codec, encoder = reference(folders[kind]), open_codec(str(folder)), open_encoder(str(folder))
    assert (codec.eos_id, codec.bos_id) == (tokenizer.eos_token_id, tokenizer.bos_token_id)
    plain = [text for text in texts() if not any(special in text for special in made.SPECIALS)]
    wanted = tokenizer(plain, add_special_tokens=False)["input_ids"]
    other = [(a.tolist(), b) for a, b in zip(encoder.encode(plain), wanted, strict=True) if a.tolist() != b]
    if kind == "unigram":
        assert len(other) <= len(plain) // 100 and all(codec.decode(a) == codec.decode(b) for a, b in other)
    else:
        assert not other
    assert not [
        text for text, ids in zip(plain, encoder.encode(plain), strict=True) if codec.encode(text) != ids.tolist()
    ]


def test_sentencepiece_alone_reads_only_harmless_settings(folders: dict[str, Path], tmp_path: Path) -> None:
    readers = {}
    for kind in made.SENTENCEPIECE_KINDS:
        if made.SENTENCEPIECE_KINDS[kind][1].get("tokenizer_class") is None:
            readers[kind] = reader_of(str(made.with_paddles_name(folders[kind], tmp_path / kind)))
    direct = {kind for kind, reader in readers.items() if reader is Reader.SENTENCEPIECE}
    assert direct == {"bpe", "bpe legacy true", "bpe nmt_nfkc", "unigram"}
    assert all(reader_of(str(folders[kind])) is Reader.TRANSFORMERS for kind in ALL)


@pytest.mark.parametrize(
    "kind", ["bpe added tokens", "bpe no prefix space", "unigram", "qwen2 fast", "bare, more tokens"]
)
def test_a_corpus_contains_these_ids(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    rows = [text for text in texts()[:600] if text]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    build_corpus([str(tmp_path / "in.jsonl")], str(folders[kind]), str(tmp_path / "out"))
    tokenizer = reference(folders[kind])
    documents = tokenizer(rows, add_special_tokens=False)["input_ids"]
    wanted = [i for ids in documents if ids for i in (*ids, tokenizer.eos_token_id)]
    assert np.fromfile(tmp_path / "out.bin", np.uint16).tolist() == wanted


@pytest.mark.parametrize(
    "kind", ["bpe", "bpe added tokens", "bpe legacy false", "gpt2", "bare", "llama no bos", "unigram"]
)
def test_a_training_sample_contains_these_ids(kind: str, folders: dict[str, Path]) -> None:
    tokenizer = reference(folders[kind])
    encoder = InstructionEncoder(open_codec(str(folders[kind])), TEMPLATES["default"], max_length=4000)
    added = len(tokenizer("a")["input_ids"]) - len(tokenizer("a", add_special_tokens=False)["input_ids"])
    prefix = tokenizer("a")["input_ids"][:added]
    pairs = [pair for pair in zip(texts()[14:300:2], texts()[15:300:2], strict=True) if all(map(str.strip, pair))]
    for question, answer in pairs:
        sample = encoder(Conversation((Turn("user", question), Turn("assistant", answer))))
        asked, answered = tokenizer([question, answer], add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        if special_ids(tokenizer).isdisjoint([*asked, *answered]):
            wanted = [*prefix, *asked, *answered, tokenizer.eos_token_id]
            assert [*sample.input_ids, sample.labels[-1]] == wanted


@pytest.mark.parametrize(
    "kind", ["bpe", "bpe added tokens", "unigram legacy false", "qwen2 fast", "gpt2 files", "bare"]
)
def test_folders_saved_by_transformers_are_read_equally(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    reference(folders[kind]).save_pretrained(str(tmp_path / "saved"))
    before, after = open_codec(str(folders[kind])), open_codec(str(tmp_path / "saved"))
    assert [after.encode_with_specials(t) for t in texts()[:300]] == [
        before.encode_with_specials(t) for t in texts()[:300]
    ]
    assert (after.eos_id, after.bos_id, after.prefix_ids) == (before.eos_id, before.bos_id, before.prefix_ids)


@cache
def _codec(path: str) -> TextCodec:
    return open_codec(path)


FRAGMENTS = st.sampled_from(
    [*made.SPECIALS, "<", "/s>", "s>", "|>", "<|", "＜／ｓ＞", "＜s＞", " ", "\n", "a", "今", "😀", "\u0301", "!"]
)


@given(parts=st.lists(st.one_of(FRAGMENTS, st.text(max_size=4)), max_size=8))
def test_text_stays_text(parts: list[str], folders: dict[str, Path]) -> None:
    """No text gets the id of a special token, at the beginning or after other text, and no text is lost."""
    text = "".join(parts)
    for kind in (
        "bpe",
        "bpe added tokens",
        "unigram added tokens",
        "bare, more tokens",
        "gpt2",
        "qwen2 fast",
        "llama first",
    ):
        codec = _codec(str(folders[kind]))
        assert isinstance(codec, TransformersCodec)
        ids = special_ids(codec.tokenizer)
        assert ids.isdisjoint(codec.encode(text)) and ids.isdisjoint(codec.encode_continuation(text)), kind
        assert codec.encode_with_specials(text) == codec.tokenizer(text, add_special_tokens=False)["input_ids"], kind
        if kind in ("bpe", "gpt2", "bare, more tokens"):
            assert codec.decode(codec.encode(text)) == text


@pytest.mark.parametrize("kind", ["bpe", "bpe legacy false", "unigram", "gpt2 fast", "llama legacy"])
def test_text_after_text_gets_no_blank(kind: str, folders: dict[str, Path]) -> None:
    codec = _codec(str(folders[kind]))
    assert codec.encode("lamp") != codec.encode_continuation("lamp")
    assert codec.decode([*codec.encode("old"), *codec.encode_continuation("lamp")]).strip() == "oldlamp"
    assert codec.encode_with_specials("lamp", start=False) == codec.encode_continuation("lamp")


@pytest.mark.parametrize("kind", ["bpe", "gpt2", "qwen2 files", "paddles"])
def test_ids_without_a_token_become_replacement_characters(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders.get(kind) or made.with_paddles_name(folders["bpe"], tmp_path / "tokenizer")
    codec = open_codec(str(folder))
    ids = [*codec.encode("old"), 5000, -1, *codec.encode_continuation(" lamp"), 2**31 - 1]
    assert codec.decode(ids) == "old\ufffd\ufffd lamp\ufffd"
    assert "lamp" in codec.show(ids)


@pytest.mark.parametrize("kind", ["bpe", "gpt2", "paddles"])
def test_a_lone_surrogate_is_one_error(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders.get(kind) or made.with_paddles_name(folders["bpe"], tmp_path / "tokenizer")
    codec = open_codec(str(folder))
    for encode in (codec.encode, codec.encode_continuation, codec.encode_with_specials):
        with pytest.raises(NotText, match=r"lone surrogate U\+D83D at character 6"):
            encode("lamp \ud83d")


def test_a_corpus_row_with_a_lone_surrogate_is_reported(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "lamp"}\n{"text": "lamp \\ud83d"}\n')
    for kind in ("bpe", "qwen2"):
        with pytest.raises(UserError, match=r"in\.jsonl.* 2: not text"):
            build_corpus([str(tmp_path / "in.jsonl")], str(folders[kind]), str(tmp_path / "out"))
        report = build_corpus(
            [str(tmp_path / "in.jsonl")], str(folders[kind]), str(tmp_path / kind), skip_bad_rows=True
        )
        assert (report.n_documents, report.bad_rows) == (1, 1)


def test_fingerprints_distinguish_settings(folders: dict[str, Path], tmp_path: Path) -> None:
    prints = {
        kind: fingerprint(str(folders[kind])) for kind in ("bpe", "bpe legacy true", "bpe added tokens", "unigram")
    }
    prints["no blank"] = fingerprint(str(folders["bpe no prefix space"]))
    assert (
        prints.pop("bpe legacy true")
        == prints["bpe"]
        == fingerprint(str(made.with_paddles_name(folders["bpe"], tmp_path / "copy")))
    )
    assert len(set(prints.values())) == len(prints)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"tokenizer_class": 5}'),
        ("tokenizer_config.json", '{"tokenizer_class": "Qwen2Tokenizer", "eos_token": 7}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["a.B", null]}, "tokenizer_class": "B"}'),
        ("tokenizer_config.json", '{"tokenizer_class": "Qwen2Tokenizer", "eos_token": {"content": "<|im_end|>"}}'),
        ("tokenizer_config.json", '{"tokenizer_class": "Qwen2Tokenizer", "model_max_length": "x"}'),
        ("tokenizer_config.json", '{"tokenizer_class": "Qwen2Tokenizer", "additional_special_tokens": true}'),
        ("tokenizer_config.json", '{"tokenizer_class": "Qwen2Tokenizer", "pad_token": "\\ud83d"}'),
        ("special_tokens_map.json", "7"),
        ("added_tokens.json", '{"<x>": "y"}'),
    ],
)
def test_a_damaged_folder_is_one_message(name: str, content: str, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["qwen2"], tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / name).write_text(content)
    try:
        codec = open_codec(str(tmp_path / "tokenizer"))
    except UserError as error:
        assert "\n" not in str(error) and str(tmp_path / "tokenizer") in str(error)
    else:
        assert codec.encode("lamp")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer"),
        ("", "tokenizer.json is empty"),
    ],
)
def test_a_failed_download_of_tokenizer_json_is_reported(content: str, message: str, tmp_path: Path) -> None:
    folder = made.write(tmp_path / "t", made.FAST_KINDS["qwen2"][1], {"tokenizer.json": content})
    with pytest.raises(UserError, match=message):
        open_codec(str(folder))


def test_a_tokenizer_with_dropout_is_an_error(tmp_path: Path) -> None:
    """With dropout, the same text would get different ids on each rank and in a resumed run."""
    folder = made.write(tmp_path / "t", made.FAST_KINDS["qwen2"][1], {"tokenizer.json": made.byte_level(dropout=0.5)})
    with pytest.raises(UserError, match="BPE dropout of 0.5"):
        open_codec(str(folder))


def test_listed_special_tokens_may_be_objects(tmp_path: Path) -> None:
    """transformers 4.55 reads them only with a `__type`; other tools omit it."""
    listed = [made.token("<a>"), {**made.token("<b>"), "__type": "AddedToken"}]
    config = {**made.FAST_KINDS["qwen2"][1], "additional_special_tokens": listed}
    codec = open_codec(str(made.write(tmp_path / "t", config, {"tokenizer.json": made.byte_level(made.QWEN2_CUTS)})))
    assert {"<a>", "<b>"} <= set(codec.specials) and len(codec.encode_with_specials("<b><a>")) == 2


def test_using_tokenizer_json_without_its_class_is_one_message(tmp_path: Path, capsys) -> None:
    config = {**made.LLAMA, "tokenizer_class": "LlamaTokenizerFast", "bos_token": None, "add_bos_token": True}
    open_codec(str(made.write(tmp_path / "t", config, {"tokenizer.json": made.like_llama("first")})))
    output = capsys.readouterr().err
    assert "cannot read it as LlamaTokenizerFast (add_bos_token = True but bos_token = None)" in " ".join(
        output.split()
    )
    assert "Use a local folder" not in output


def machine_paths(folder: Path) -> list[str]:
    """Return the text files of a folder that contain a path of this machine."""
    texts_of = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".model"}
    return [name for name, content in texts_of.items() if b"/tmp/" in content or str(folder.parent).encode() in content]


SAVED = [k for k in ALL if k not in ("bpe legacy true", "bpe adds eos", "gpt2 clean up", "neox", "bloom", "cohere")]


@pytest.mark.parametrize("kind", SAVED)
def test_a_saved_tokenizer_is_equal_here_and_in_transformers(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Compare the tokenizer saved with a trained model and the one in an export."""
    sample, source = texts()[:200], folders[kind]
    wanted = reference(source)(sample)["input_ids"]
    load_tokenizer(str(source)).save_pretrained(str(tmp_path / "saved"))
    (tmp_path / "exported").mkdir()
    write_tokenizer(SimpleNamespace(tokenizer=source, folder=source, template=None), tmp_path / "exported", "hf")
    for folder in (tmp_path / "saved", tmp_path / "exported"):
        assert not machine_paths(folder)
        theirs = import_transformers().AutoTokenizer.from_pretrained(str(folder))
        assert theirs(sample)["input_ids"] == wanted, folder.name
        ours = open_codec(str(folder))
        plain = theirs(sample, add_special_tokens=False)["input_ids"]
        assert [ours.encode_with_specials(text) for text in sample] == plain, folder.name
        assert (ours.eos_id, ours.prefix_ids) == (open_codec(str(source)).eos_id, open_codec(str(source)).prefix_ids)
        assert fingerprint(str(folder)) == fingerprint(str(source))


def test_a_folder_with_paddlenlps_file_name_is_saved_for_transformers(folders: dict[str, Path], tmp_path: Path) -> None:
    source = made.with_paddles_name(folders["bpe added tokens"], tmp_path / "tokenizer")
    load_tokenizer(str(source)).save_pretrained(str(tmp_path / "saved"))
    wanted = reference(folders["bpe added tokens"])(texts()[:200])["input_ids"]
    assert (
        import_transformers().AutoTokenizer.from_pretrained(str(tmp_path / "saved"))(texts()[:200])["input_ids"]
        == wanted
    )


def test_sentencepiece_is_used_only_where_ids_are_equal(folders: dict[str, Path], tmp_path: Path) -> None:
    faster = {kind for kind in made.SENTENCEPIECE_KINDS if getattr(open_encoder(str(folders[kind])), "_pieces", None)}
    assert {"bpe", "bpe legacy true", "bpe added tokens"} <= faster
    assert not faster & {"unigram", "bpe legacy false", "bpe no prefix space", "bpe nmt_nfkc", "gemma"}


@pytest.mark.parametrize("kind", ["bpe", "qwen2", "paddles"])
def test_special_tokens_in_documents_are_counted(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders.get(kind) or made.with_paddles_name(folders["bpe"], tmp_path / "tokenizer")
    end = open_codec(str(folder)).specials
    written = next(token for token in end if token in ("</s>", "<|im_end|>"))
    (tmp_path / "in.txt").write_text(f"lamp {written} river {written}\nlamp\n")
    report = build_corpus([str(tmp_path / "in.txt")], str(folder), str(tmp_path / "out"))
    assert report.special_tokens == 2


@pytest.mark.parametrize("settings", [{}, {"legacy": False}, {"legacy": False, "add_prefix_space": False}])
def test_text_after_a_special_token_of_a_template(
    settings: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    tokens = {"500": made.token("<|im_start|>"), "501": made.token("<|im_end|>")}
    config = {**made.LLAMA, **settings, "added_tokens_decoder": tokens}
    model = (folders["bpe"] / "tokenizer.model").read_bytes()
    folder = made.write(tmp_path / "tokenizer", config, {"tokenizer.model": model})
    encoder = InstructionEncoder(open_codec(str(folder)), TEMPLATES["chatml"], max_length=400)
    turns = (Turn("user", "lamp"), Turn("assistant", "river"), Turn("user", " old"), Turn("assistant", "mirror"))
    sample = encoder(Conversation(turns))
    parts = [f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>" for turn in turns]
    wanted = reference(folder)("\n".join(parts), add_special_tokens=False)["input_ids"]
    assert [*sample.input_ids, sample.labels[-1]] == wanted


@given(parts=st.lists(st.one_of(FRAGMENTS, st.text(max_size=4)), max_size=8))
def test_text_stays_text_in_paddlenlps_folders(parts: list[str], paddlenlp_folders: dict[str, Path]) -> None:
    text = "".join(parts)
    for kind, folder in paddlenlp_folders.items():
        codec = _codec(str(folder))
        ids = {codec.special_id(name) for name in codec.specials} - {codec.special_id("<unk>")}
        assert ids.isdisjoint(codec.encode(text)) and ids.isdisjoint(codec.encode_continuation(text)), kind


@pytest.fixture(scope="session")
def paddlenlp_folders(folders: dict[str, Path], tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("paddlenlp")
    chatglm = {"ChatGLM-6B": chatglm_folder, "ChatGLM3": chatglm3_folder}
    plain = {kind: made.with_paddles_name(folders[kind], root / kind) for kind in ("bpe", "unigram")}
    return plain | {kind: Path(write(root / kind)) for kind, write in chatglm.items()}


def test_documents_of_a_tokenizer_that_splits_special_tokens(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["lamp river"], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<e>"])
    )
    auto = import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<e>", split_special_tokens=True
    )
    auto.save_pretrained(tmp_path)
    text = "lamp<e>river"
    wanted = import_transformers().AutoTokenizer.from_pretrained(str(tmp_path))(text)["input_ids"]
    assert open_encoder(str(tmp_path)).encode([text])[0].tolist() == wanted
    assert auto.eos_token_id not in wanted
