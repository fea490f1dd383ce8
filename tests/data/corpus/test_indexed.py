"""Opening corpora: three formats, and all kinds of damaged files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.build import build_corpus
from paddle_llm.data.corpus.checks import check_corpus, largest_token, verify_index
from paddle_llm.data.corpus.indexed import open_corpus
from tests.helpers.corpus import numbered_documents, write_corpus


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return write_corpus(tmp_path / "c", numbered_documents(20))


def edit(path: str, change: Callable[[bytearray], None]) -> None:
    raw = bytearray(Path(path).read_bytes())
    change(raw)
    Path(path).write_bytes(raw)


def test_all_formats_give_the_same_documents(tmp_path: Path) -> None:
    from paddlenlp.data.indexed_dataset import make_builder

    documents = numbered_documents(12)
    for impl in ("mmap", "lazy"):
        builder = make_builder(str(tmp_path / f"{impl}.bin"), impl, np.uint16)
        for document in documents:  # two sequences per document
            builder.add_item(document[:1])
            builder.add_item(document[1:])
            builder.end_document()
        builder.finalize(str(tmp_path / f"{impl}.idx"))
    np.save(tmp_path / "old_ids.npy", np.concatenate(documents).astype(np.int32))
    sizes = np.array([len(d) for d in documents], dtype=np.int32)
    np.savez(tmp_path / "old_idx.npz", lens=sizes, docs=np.arange(13))
    write_corpus(tmp_path / "ours", documents)
    for name in ("mmap", "lazy", "old", "ours", "ours.bin", "ours.idx", "old_ids.npy"):
        corpus = open_corpus(str(tmp_path / name))
        verify_index(corpus)
        assert corpus.n_documents == 12
        assert [corpus.document(i).tolist() for i in range(12)] == [d.tolist() for d in documents], name
        assert corpus.doc_lengths(3, 12).tolist() == sizes[3:].tolist()
        assert largest_token(corpus) == documents[-1][-1]


def test_a_missing_corpus_or_index_is_an_error(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(UserError, match="corpus .*absent: not found.*data build"):
        open_corpus(str(tmp_path / "absent"))
    Path(prefix + ".idx").unlink()
    with pytest.raises(UserError, match="incomplete: the tokens exist but no index"):
        open_corpus(prefix)


def test_missing_tokens_are_an_error(prefix: str) -> None:
    Path(prefix + ".bin").unlink()
    with pytest.raises(UserError, match=r"incomplete: the index exists but not the tokens \(.*c\.bin\)"):
        open_corpus(prefix)


def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty"):
        open_corpus(write_corpus(tmp_path / "none", []))
    Path(tmp_path / "zero.bin").touch()
    Path(tmp_path / "zero.idx").touch()
    with pytest.raises(UserError, match=r"zero\.idx: corrupt: 0 bytes"):
        open_corpus(str(tmp_path / "zero"))


def test_truncated_tokens_are_an_error(prefix: str) -> None:
    tokens = Path(prefix + ".bin").stat().st_size // 2
    edit(prefix + ".bin", lambda raw: raw.__delitem__(slice(-10, None)))
    with pytest.raises(UserError, match=rf"c\.bin: truncated.*\({tokens} tokens\).*\({tokens - 5} tokens\)"):
        open_corpus(prefix)
    edit(prefix + ".bin", lambda raw: raw.extend(b"\0" * 20))
    with pytest.raises(UserError, match="longer than its index:"):
        open_corpus(prefix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.__setitem__(slice(0, 5), b"xxxxx"), "not an index in the mmap format"),
        (lambda raw: raw.__setitem__(17, 7), "dtype code 7"),
        (lambda raw: raw.__delitem__(slice(100, 108)), "its header describes 20 sequences"),
        (lambda raw: raw.__delitem__(slice(20, None)), "the header alone has 34"),
        (
            lambda raw: raw.__setitem__(slice(-8, None), (19).to_bytes(8, "little")),
            "document ends at sequence 19 of 20",
        ),
        (
            lambda raw: raw.__setitem__(slice(34, 38), (99).to_bytes(4, "little")),
            "sequence 1 .* should start at token 99",
        ),
        (lambda raw: raw.__setitem__(slice(34, 38), b"\xff\xff\xff\xff"), r"sequence 0 \(-1 tokens\)"),
        (lambda raw: raw.__setitem__(slice(-24, -16), (1).to_bytes(8, "little")), "document 17 starts after it ends"),
    ],
)
def test_a_corrupt_index_is_an_error(prefix: str, change: Callable[[bytearray], None], message: str) -> None:
    edit(prefix + ".idx", change)
    with pytest.raises(UserError, match=message) as raised:
        verify_index(open_corpus(prefix))
    assert "c.idx" in str(raised.value)


def test_the_older_npy_npz_pair_is_checked(tmp_path: Path) -> None:
    np.save(tmp_path / "old_ids.npy", np.arange(30, dtype=np.int32))
    np.savez(tmp_path / "old_idx.npz", lens=np.array([10, 10]), docs=np.arange(3))
    with pytest.raises(UserError, match="30 tokens, but old_idx.npz describes 20"):
        open_corpus(str(tmp_path / "old"))
    edit(str(tmp_path / "old_ids.npy"), lambda raw: raw.__delitem__(slice(-40, None)))
    with pytest.raises(UserError, match=r"old_ids\.npy: truncated"):
        open_corpus(str(tmp_path / "old"))
    (tmp_path / "old_idx.npz").write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match=r"old_idx\.npz: not an index"):
        open_corpus(str(tmp_path / "old"))


def test_a_truncated_lazy_index_is_an_error(tmp_path: Path) -> None:
    from paddlenlp.data.indexed_dataset import make_builder

    builder = make_builder(str(tmp_path / "lazy.bin"), "lazy", np.int32)
    builder.add_item(np.arange(5))
    builder.end_document()
    builder.finalize(str(tmp_path / "lazy.idx"))
    edit(str(tmp_path / "lazy.idx"), lambda raw: raw.__delitem__(slice(-9, None)))
    with pytest.raises(UserError, match=r"lazy\.idx: corrupt"):
        open_corpus(str(tmp_path / "lazy"))


def test_ids_outside_the_vocabulary_are_an_error(prefix: str, tmp_path: Path) -> None:
    corpus = open_corpus(prefix)
    highest = int(corpus.tokens.max())
    with pytest.raises(UserError, match=rf"token id {highest} is outside the model's vocabulary of {highest}"):
        check_corpus(corpus, vocab_size=highest, eos_id=None, fingerprint=None, cache_dir=tmp_path / "cache")
    check_corpus(corpus, vocab_size=highest + 1, eos_id=None, fingerprint=None, cache_dir=tmp_path / "cache")
    negative = write_corpus(tmp_path / "n", [np.array([3, -7, 2])], dtype="<i4")
    with pytest.raises(UserError, match="negative token id: -7"):
        check_corpus(open_corpus(negative), vocab_size=10, eos_id=None, fingerprint=None)


def test_the_largest_id_is_cached_until_the_data_changes(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paddle_llm.data.corpus.checks._CACHE_ABOVE_TOKENS", 0)
    corpus = open_corpus(prefix)
    highest = largest_token(corpus, tmp_path / "cache")
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_text("12345")  # the cached value is read
    assert largest_token(corpus, tmp_path / "cache") == 12345
    edit(prefix + ".bin", lambda raw: raw.__setitem__(slice(0, 2), b"\xff\xff"))
    assert largest_token(open_corpus(prefix), tmp_path / "cache") == 65535 != highest


def test_another_tokenizer_or_eos_is_an_error(
    tmp_path: Path, jsonl: Callable[[str, list[str]], Path], tokenizer_folder: str
) -> None:
    build_corpus([str(jsonl("a.jsonl", ["some text"]))], tokenizer_folder, str(tmp_path / "c"))
    corpus = open_corpus(str(tmp_path / "c"))
    recorded = corpus.meta["tokenizer_fingerprint"]
    check_corpus(corpus, vocab_size=700, eos_id=2, fingerprint=recorded)
    with pytest.raises(UserError, match=f"another tokenizer: its fingerprint is {recorded}.*is abc"):
        check_corpus(corpus, vocab_size=700, eos_id=2, fingerprint="abc")
    with pytest.raises(UserError, match="documents end with id 2, but the tokenizer's EOS is 1"):
        check_corpus(corpus, vocab_size=700, eos_id=1, fingerprint=recorded)


def test_a_meta_file_of_another_corpus_is_an_error(prefix: str, tmp_path: Path) -> None:
    Path(prefix + ".meta.json").write_text(json.dumps({"data_key": "other", "max_token_id": 3, "n_tokens": 5}))
    with pytest.raises(UserError, match="describes another corpus than"):
        open_corpus(prefix)
    Path(prefix + ".meta.json").write_text("{")
    with pytest.raises(UserError, match=r"meta\.json: unreadable"):
        open_corpus(prefix)
