"""Digests of corpus files: recorded when a corpus is built, used while a file has its size and time, else computed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import xxhash

from paddle_llm.data.corpus import content_digest
from paddle_llm.data.corpus.content_digest import file_digest, record, records_of
from tests.helpers.corpus import numbered_documents, write_corpus


def digest(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(path.read_bytes())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(write_corpus(tmp_path / "c", numbered_documents(50)) + ".bin")


def change(path: Path, keep_time: bool = False) -> None:
    """Change one token in place; with a later modification time, as an editor leaves it, or with the old one."""
    before = path.stat()
    tokens = np.memmap(path, dtype="<u2", mode="r+")
    tokens[len(tokens) // 2] ^= 1
    tokens.flush()
    later = before.st_mtime_ns + (0 if keep_time else 1_000_000)
    os.utime(path, ns=(before.st_atime_ns, later))


def test_the_digest_is_that_of_the_whole_file(file):
    assert file_digest(file) == digest(file)
    change(file)
    assert file_digest(file) == digest(file)


def test_a_record_is_used_while_size_and_time_are_the_same(file):
    recorded = record(file, digest(file))
    first = digest(file)
    change(file, keep_time=True)
    assert file_digest(file, recorded) == first  # the file is not read
    change(file)
    assert file_digest(file, recorded) == digest(file)
    with file.open("ab") as stream:
        stream.write(b"\0\0")
    os.utime(file, ns=(0, recorded["modified_ns"]))
    assert file_digest(file, recorded) == digest(file)


def test_the_digest_of_a_large_file_is_computed_once(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(content_digest, "_CACHE_ABOVE_BYTES", 100)
    cache = tmp_path / "cache"
    first = file_digest(file, None, cache)
    assert "GB for its digest" in capsys.readouterr().err and len(list(cache.iterdir())) == 1
    assert file_digest(file, None, cache) == first and capsys.readouterr().err == ""
    change(file)
    assert file_digest(file, None, cache) == digest(file) != first


def test_a_folder_that_cannot_be_written_is_reported(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(content_digest, "_CACHE_ABOVE_BYTES", 100)
    (tmp_path / "blocked").write_text("a file")
    assert file_digest(file, None, tmp_path / "blocked") == digest(file)
    assert "The file is read again at the next start." in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{", '{".bin": 3}'])
def test_damaged_records_are_not_used(content, file, tmp_path):
    (tmp_path / "c.digests.json").write_text(content)
    assert records_of(str(tmp_path / "c")).get(".bin") is None
    assert json.dumps(records_of(str(tmp_path / "none"))) == "{}"
