"""Files are on disk before their names are, and digests are those of the content."""

from __future__ import annotations

import xxhash

from paddle_llm.core import durable_files
from paddle_llm.core.atomic_output import staged_folder, write_atomically
from paddle_llm.core.durable_files import operations_passed_to, write_durably


def test_digest_and_size_are_those_of_the_content(tmp_path, monkeypatch):
    monkeypatch.setattr(durable_files, "BLOCK_BYTES", 7)
    pieces = [b"", bytes(range(100)), memoryview(b"abc"), memoryview(bytearray(50))]
    record = write_durably(tmp_path / "file", pieces)
    content = (tmp_path / "file").read_bytes()
    assert content == b"".join(pieces)
    assert (record.nbytes, record.xxh3_128) == (153, xxhash.xxh3_128_hexdigest(content))


def test_everything_is_flushed_before_the_name_appears(tmp_path):
    order = []
    with operations_passed_to(lambda operation, path: order.append((operation, path.name))):
        write_atomically(tmp_path / "file", b"content")
        with staged_folder(tmp_path / "out") as staged:
            write_durably(staged / "inside", [b"content"])
    temporary = order[0][1]
    assert order[:5] == [
        ("create", temporary),
        ("write", temporary),
        ("flush", temporary),
        ("rename", "file"),
        ("flush", tmp_path.name),
    ]
    folder = order[5:]
    rename = folder.index(("rename", "out"))
    assert folder[:3] == [("create", "inside"), ("write", "inside"), ("flush", "inside")]
    assert ("flush", "out.saving") in folder[:rename] and folder[rename + 1 :] == [("flush", tmp_path.name)]
    write_atomically(tmp_path / "file", b"not observed")
    assert len(order) == 5 + len(folder)
