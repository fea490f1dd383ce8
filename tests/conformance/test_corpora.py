"""Corpora (.bin and .idx) of PaddleNLP and Megatron are read here, and corpora of this project are read by them."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.checks import verify_index
from paddle_llm.data.corpus.indexed import open_corpus
from paddle_llm.data.corpus.mmap_format import write_index

MEGATRON = "megatron-core==0.16.1"
DTYPES = ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
# Documents of one or more sequences; one is empty.
DOCUMENTS = [[[1, 2, 3], [4]], [[]], [[5, 6]], [[7], [8, 9, 125]]]
# Output of Megatron-Core 0.16.1's IndexedDatasetBuilder for DOCUMENTS.
WRITTEN_BY_MEGATRON = {
    "uint16": (
        "AQACAAMABAAFAAYABwAIAAkAfQA=",
        "TU1JRElEWAAAAQAAAAAAAAAIBgAAAAAAAAAFAAAAAAAAAAMAAAABAAAAAAAAAAIAAAABAAAAAwAAAAAAAAAAAAAABgAAAAAAAAAIAAAAAAAAAAgAAAAAAAAADAAAAAAAAAAO"
        "AAAAAAAAAAAAAAAAAAAAAgAAAAAAAAADAAAAAAAAAAQAAAAAAAAABgAAAAAAAAA=",
    ),
    "int32": (
        "AQAAAAIAAAADAAAABAAAAAUAAAAGAAAABwAAAAgAAAAJAAAAfQAAAA==",
        "TU1JRElEWAAAAQAAAAAAAAAEBgAAAAAAAAAFAAAAAAAAAAMAAAABAAAAAAAAAAIAAAABAAAAAwAAAAAAAAAAAAAADAAAAAAAAAAQAAAAAAAAABAAAAAAAAAAGAAAAAAAAAAc"
        "AAAAAAAAAAAAAAAAAAAAAgAAAAAAAAADAAAAAAAAAAQAAAAAAAAABgAAAAAAAAA=",
    ),
}  # fmt: skip


def joined(documents: list[list[list[int]]]) -> list[list[int]]:
    return [list(chain.from_iterable(document)) for document in documents]


def read_by_us(prefix: Path) -> list[list[int]]:
    corpus = open_corpus(str(prefix))
    verify_index(corpus)
    return [corpus.document(i).tolist() for i in range(corpus.n_documents)]


def write_with_paddlenlp(prefix: Path, documents: list[list[list[int]]], dtype: str) -> Path:
    from paddlenlp.data.indexed_dataset import MMapIndexedDatasetBuilder

    builder = MMapIndexedDatasetBuilder(f"{prefix}.bin", getattr(np, dtype))
    for document in documents:
        for sequence in document:
            builder.add_item(sequence)
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return prefix


def read_by_paddlenlp(prefix: Path) -> list[list[int]]:
    from paddlenlp.data.indexed_dataset import MMapIndexedDataset

    found = MMapIndexedDataset(str(prefix), skip_warmup=True)
    starts = found.doc_idx.tolist()
    return [
        list(chain.from_iterable(found[i].tolist() for i in range(first, stop)))
        for first, stop in zip(starts, starts[1:], strict=False)
    ]


def write_ours(prefix: Path, documents: list[list[int]], dtype: str) -> Path:
    """Write documents of one sequence each, as `data build` does."""
    tokens = np.array(list(chain.from_iterable(documents)), dtype)
    Path(f"{prefix}.bin").write_bytes(tokens.tobytes())
    sizes = np.array([len(document) for document in documents], np.int32)
    with open(f"{prefix}.idx", "wb") as stream:
        write_index(stream, np.dtype(dtype), len(sizes), [sizes])
    return prefix


def write_megatrons(prefix: Path, dtype: str) -> Path:
    for suffix, text in zip(("bin", "idx"), WRITTEN_BY_MEGATRON[dtype], strict=True):
        Path(f"{prefix}.{suffix}").write_bytes(base64.b64decode(text))
    return prefix


@pytest.mark.parametrize("dtype", DTYPES)
def test_paddlenlp_and_ours_read_each_other(dtype: str, tmp_path: Path) -> None:
    theirs = write_with_paddlenlp(tmp_path / "theirs", DOCUMENTS, dtype)
    assert read_by_us(theirs) == joined(DOCUMENTS) == read_by_paddlenlp(theirs)
    ours = write_ours(tmp_path / "ours", joined(DOCUMENTS), dtype)
    assert read_by_us(ours) == joined(DOCUMENTS) == read_by_paddlenlp(ours)


@pytest.mark.parametrize("dtype", WRITTEN_BY_MEGATRON)
def test_files_of_megatron_are_read(dtype: str, tmp_path: Path) -> None:
    prefix = write_megatrons(tmp_path / "m", dtype)
    assert read_by_us(prefix) == joined(DOCUMENTS) == read_by_paddlenlp(prefix)


@given(
    lengths=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=8).filter(
        lambda d: sum(map(sum, d))
    ),
    dtype=st.sampled_from(DTYPES),
)
def test_any_corpus_is_read_and_written_equally(tmp_path_factory, lengths: list[list[int]], dtype: str) -> None:
    folder, numbers = tmp_path_factory.mktemp("corpus"), iter(range(10_000))
    documents = [[[next(numbers) % 100 for _ in range(n)] for n in document] for document in lengths]
    assert read_by_us(write_with_paddlenlp(folder / "theirs", documents, dtype)) == joined(documents)
    single = [[sequence] for sequence in joined(documents)]
    write_with_paddlenlp(folder / "single", single, dtype)
    write_ours(folder / "ours", joined(documents), dtype)
    for suffix in ("bin", "idx"):
        assert Path(folder / f"ours.{suffix}").read_bytes() == Path(folder / f"single.{suffix}").read_bytes()


def test_damaged_pairs_are_an_error(tmp_path: Path) -> None:
    def changed(name: str, suffix: str, change) -> Path:
        prefix = write_megatrons(tmp_path / name, "int32")
        path = Path(f"{prefix}.{suffix}")
        path.write_bytes(change(path.read_bytes()))
        return prefix

    cases = {
        "short": ("bin", lambda raw: raw[:-4], "truncated"),
        "long": ("bin", lambda raw: raw + b"\0\0\0\0", "longer than its index:"),
        "cut": ("idx", lambda raw: raw[:-8], "corrupt"),
        "version": ("idx", lambda raw: raw[:9] + b"\x02" + raw[10:], "version 2"),
        "floats": ("idx", lambda raw: raw[:17] + b"\x07" + raw[18:], "dtype code 7"),
        "modes": ("idx", lambda raw: raw + bytes(6), "sequence modes"),
        "start": ("idx", lambda raw: raw[:-40] + b"\x01" + raw[-39:], "first document begins at sequence 1"),
        "other": ("idx", lambda raw: b"X" + raw[1:], "not an index in the mmap format"),
    }
    for name, (suffix, change, message) in cases.items():
        with pytest.raises(UserError, match=message):
            read_by_us(changed(name, suffix, change))
    prefix = write_megatrons(tmp_path / "alone", "uint16")
    Path(f"{prefix}.idx").unlink()
    with pytest.raises(UserError, match="alone.idx"):
        open_corpus(str(prefix))


_PROGRAM = """
import sys
import numpy, torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
folder, documents = sys.argv[1], eval(sys.argv[2])
for name in ("uint16", "int32"):
    builder = IndexedDatasetBuilder(f"{folder}/theirs_{name}.bin", dtype=getattr(numpy, name))
    for document in documents:
        for sequence in document:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64))
        builder.end_document()
    builder.finalize(f"{folder}/theirs_{name}.idx")
    ours = IndexedDataset(f"{folder}/ours_{name}")
    print([ours[i].tolist() for i in range(len(ours))])
"""


@pytest.mark.slow
@pytest.mark.hf
def test_megatron_core_reads_our_files_and_writes_the_recorded_bytes(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), MEGATRON]
    subprocess.run(install, check=True, timeout=280)
    for dtype in WRITTEN_BY_MEGATRON:
        write_ours(tmp_path / f"ours_{dtype}", joined(DOCUMENTS), dtype)
    program = f"import sys; sys.path.insert(0, {str(site)!r})\n{_PROGRAM}"
    command = [sys.executable, "-c", program, str(tmp_path), repr(DOCUMENTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert [eval(line) for line in io.StringIO(done.stdout) if line.startswith("[[")] == [joined(DOCUMENTS)] * 2
    for dtype, recorded in WRITTEN_BY_MEGATRON.items():
        for suffix, text in zip(("bin", "idx"), recorded, strict=True):
            assert (tmp_path / f"theirs_{dtype}.{suffix}").read_bytes() == base64.b64decode(text)
