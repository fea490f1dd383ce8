"""`data build`: PaddleNLP reads the result, workers do not change it, a killed build is incomplete, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import xxhash

from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.build import build_corpus
from paddle_llm.data.corpus.content_digest import record, records_of
from paddle_llm.data.corpus.encode import PaddleNLPEncoder
from paddle_llm.data.corpus.indexed import open_corpus
from paddle_llm.data.corpus.inspect import inspect_corpus
from paddle_llm.data.corpus.mmap_format import token_dtype
from paddle_llm.data.corpus.sources import read_blocks
from paddle_llm.data.tokenizer import train_tokenizer
from tests.helpers.corpus import english_and_chinese
from tests.helpers.processes import wait_until

Writer = Callable[[str, list[str]], Path]
SUFFIXES = (".bin", ".idx", ".meta.json")


def contents(prefix: Path) -> dict[str, bytes]:
    return {suffix: Path(f"{prefix}{suffix}").read_bytes() for suffix in SUFFIXES}


def test_paddlenlps_reader_returns_the_ids_of_its_tokenizer(
    tmp_path: Path, jsonl: Writer, tokenizer_folder: str
) -> None:
    from paddlenlp.data.indexed_dataset import MMapIndexedDataset

    documents = english_and_chinese(60)
    report = build_corpus([str(jsonl("a.jsonl", documents))], tokenizer_folder, str(tmp_path / "corpus"))
    reader = MMapIndexedDataset(str(tmp_path / "corpus"), skip_warmup=True)
    expected = [np.append(ids, 2) for ids in PaddleNLPEncoder(tokenizer_folder).encode(documents)]
    assert len(reader) == len(documents) == report.n_documents
    assert reader.doc_idx.tolist() == list(range(len(documents) + 1))
    assert all(np.array_equal(reader[i], expected[i]) for i in range(len(documents)))
    assert reader[0].dtype == np.uint16
    assert report.n_tokens == sum(map(len, expected))
    corpus = open_corpus(str(tmp_path / "corpus"))
    assert all(np.array_equal(corpus.document(i), expected[i]) for i in range(len(documents)))
    assert corpus.meta["max_token_id"] == max(int(e.max()) for e in expected)


def test_the_output_does_not_depend_on_the_number_of_workers(
    tmp_path: Path, jsonl: Writer, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [str(jsonl(f"{i}.jsonl", english_and_chinese(200, seed=i))) for i in range(2)]
    monkeypatch.setattr("paddle_llm.data.corpus.build.read_blocks", lambda s, o: read_blocks(s, o, block_bytes=2000))
    for workers in (1, 2, 3):
        build_corpus(inputs, tokenizer_folder, str(tmp_path / str(workers)), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


def test_workers_do_not_import_paddle() -> None:
    code = "import paddle_llm.data.corpus.workers, sys; assert not {'paddle', 'paddlenlp'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_dtype_fits_the_vocabulary() -> None:
    assert token_dtype(65535) == np.uint16
    assert token_dtype(65536) == np.int32
    assert token_dtype(250_880) == np.int32


def start_large_build(folder: Path, tokenizer: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Start a build of folder/big.txt; return it and its worker processes once it has begun to write."""
    source, prefix = folder / "big.txt", folder / "corpus"
    text = "\n".join(english_and_chinese(200)) + "\n"
    source.write_text(text * 1600, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "paddle_llm.cli",
        "data",
        "build",
        "--input",
        str(source),
        "--tokenizer",
        tokenizer,
    ]
    command += ["--output_prefix", str(prefix), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    building = Path(f"{prefix}.bin.building")
    wait_until(lambda: building.exists() and building.stat().st_size, 100, "the build has begun to write")
    return process, psutil.Process(process.pid).children(recursive=True)


def test_a_killed_build_leaves_no_file_that_looks_complete(tmp_path: Path, tokenizer_folder: str) -> None:
    prefix = tmp_path / "corpus"
    process, workers = start_large_build(tmp_path, tokenizer_folder)
    with pytest.raises(UserError, match="another build is writing to it"):
        build_corpus([str(tmp_path / "big.txt")], tokenizer_folder, str(prefix))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the build was over before it could be killed"
    assert not any(Path(f"{prefix}{suffix}").exists() for suffix in SUFFIXES)
    with pytest.raises(UserError, match="incomplete: its build is running or was killed"):
        open_corpus(str(prefix))
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive, "workers outlive a killed build"
    small = tmp_path / "small.txt"
    small.write_text("after the crash\n")
    build_corpus([str(small)], tokenizer_folder, str(prefix))
    assert open_corpus(str(prefix)).n_documents == 1
    assert not list(tmp_path.glob("*.building"))


def test_a_killed_worker_ends_the_build_with_one_message(tmp_path: Path, tokenizer_folder: str) -> None:
    process, workers = start_large_build(tmp_path, tokenizer_folder)
    spawned = [worker for worker in workers if "spawn_main" in " ".join(worker.cmdline())]
    spawned[0].kill()
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 2, talk
    assert "error: a worker of the build was killed" in talk and "Traceback" not in talk
    assert [path.name for path in tmp_path.iterdir()] == ["big.txt"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_row_stops_the_build_or_is_counted(tmp_path: Path, tokenizer_folder: str, workers: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"text": ""}\nbroken\n{"text": "lone \\ud800 half"}\n{"text": "fine too"}\n')
    with pytest.raises(UserError, match=rf"{path}, line 3: not JSON.*--skip_bad_rows"):
        build_corpus([str(path)], tokenizer_folder, str(tmp_path / "c"), workers=workers)
    assert not list(tmp_path.glob("c.*"))
    report = build_corpus([str(path)], tokenizer_folder, str(tmp_path / "c"), workers=workers, skip_bad_rows=True)
    assert (report.n_documents, report.bad_rows, report.empty_documents) == (2, 2, 1)
    assert "line 4: not text" in report.problems[1]


def test_an_existing_corpus_is_replaced_only_with_overwrite(
    tmp_path: Path, jsonl: Writer, tokenizer_folder: str
) -> None:
    first, second = jsonl("a.jsonl", ["first"]), jsonl("b.jsonl", ["second", "third"])
    prefix = str(tmp_path / "c")
    build_corpus([str(first)], tokenizer_folder, prefix)
    with pytest.raises(UserError, match="a corpus exists already"):
        build_corpus([str(second)], tokenizer_folder, prefix)
    build_corpus([str(second)], tokenizer_folder, prefix, overwrite=True)
    assert open_corpus(prefix).n_documents == 2


def test_input_without_a_document_writes_nothing(tmp_path: Path, tokenizer_folder: str) -> None:
    (tmp_path / "a.txt").write_text("\n\n")
    with pytest.raises(UserError, match="no document in 1 input file:"):
        build_corpus([str(tmp_path / "a.txt")], tokenizer_folder, str(tmp_path / "c"))
    with pytest.raises(UserError, match="no document in 1 input file:"):
        build_corpus([str(tmp_path / "a.txt")], tokenizer_folder, str(tmp_path / "new" / "folder" / "c"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt"]


def test_an_unwritable_prefix_is_an_error(tmp_path: Path, jsonl: Writer, tokenizer_folder: str) -> None:
    source = jsonl("a.jsonl", ["text"])
    with pytest.raises(UserError, match="cannot be written"):
        build_corpus([str(source)], tokenizer_folder, str(source / "corpus"))
    with pytest.raises(UserError, match="is a folder. Add a name"):
        build_corpus([str(source)], tokenizer_folder, f"{tmp_path}/")


def test_a_tokenizer_of_another_class_goes_through_paddlenlp(tmp_path: Path, jsonl: Writer) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "small", "words", "明", "月"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "eos_token": "[SEP]"})
    )
    build_corpus([str(jsonl("a.jsonl", ["small words 明月"]))], str(folder), str(tmp_path / "c"), workers=2)
    assert open_corpus(str(tmp_path / "c")).document(0).tolist() == [5, 6, 7, 8, 3]


def test_inspection_finds_changes_made_after_the_build(tmp_path: Path, jsonl: Writer, tokenizer_folder: str) -> None:
    prefix = str(tmp_path / "c")
    report = build_corpus([str(jsonl("a.jsonl", english_and_chinese(50)))], tokenizer_folder, prefix)
    _, found = inspect_corpus(prefix, tokenizer_folder)
    assert found.problems == []
    assert (found.n_documents, found.n_tokens) == (50, report.n_tokens)
    assert sum(count for _, _, count in found.histogram) == 50
    assert found.not_ended_by_eos == 0
    train_tokenizer(english_and_chinese(300, seed=5), str(tmp_path / "other"), 700)
    assert "it was built with tokenizer" in inspect_corpus(prefix, str(tmp_path / "other"))[1].problems[0]
    meta = json.loads(Path(prefix + ".meta.json").read_text())
    Path(prefix + ".meta.json").write_text(json.dumps({**meta, "n_documents": 49, "data_sha256": "0"}))
    problems = inspect_corpus(prefix)[1].problems
    assert any("n_documents is 50" in p for p in problems)
    assert any("has changed since it was built" in p for p in problems)


def test_memory_does_not_grow_with_the_input(tmp_path: Path, tokenizer_folder: str) -> None:
    """Compare the peak memory of a build of 3 MB and of 24 MB (VmHWM, since ru_maxrss is inherited from this process)."""
    code = (
        "import re, sys; from paddle_llm.data.corpus.build import build_corpus\n"
        "build_corpus([sys.argv[1]], sys.argv[2], sys.argv[3])\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    peaks = []
    for megabytes in (3, 24):
        path = tmp_path / f"{megabytes}.txt"
        text = ("\n".join(english_and_chinese(100)) + "\n").encode()
        path.write_bytes(text * (megabytes * 1_000_000 // len(text)))
        arguments = [sys.executable, "-c", code, str(path), tokenizer_folder, str(tmp_path / f"c{megabytes}")]
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        run = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment)
        peaks.append(int(run.stdout) / 1024)
    assert peaks[1] < peaks[0] + 15, f"{peaks} MB"


def test_the_digests_of_both_files_are_recorded(tmp_path: Path, jsonl: Writer, tokenizer_folder: str) -> None:
    prefix = tmp_path / "corpus"
    build_corpus([str(jsonl("a.jsonl", english_and_chinese(60)))], tokenizer_folder, str(prefix))
    recorded = records_of(str(prefix))
    assert sorted(recorded) == [".bin", ".idx"]
    for suffix, found in recorded.items():
        file = Path(f"{prefix}{suffix}")
        assert found == record(file, xxhash.xxh3_128_hexdigest(file.read_bytes()))
