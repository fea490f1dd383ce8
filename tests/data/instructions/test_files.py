"""Instruction files: all kinds give the same conversations; folders and blends; bad rows are an error or skipped."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.conversation import Conversation, Turn
from paddle_llm.data.instructions.data_files import find_files
from paddle_llm.data.instructions.file_reports import describe_data
from paddle_llm.data.instructions.files import load_conversations
from paddle_llm.data.instructions.rows import read_rows
from paddle_llm.data.samples.dataset import ConversationBlend, load_split

ROWS = [{"src": f"Frage {i}, 问 “x”\nzwei", "tgt": f"Antwort {i}"} for i in range(5)]


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(conversations) -> list[str]:
    return [c.turns[0].content for c in conversations]


def write_all_kinds(folder: Path) -> list[Path]:
    lines = jsonl(folder / "a.jsonl", ROWS).read_bytes()
    (folder / "b.json").write_bytes(b"\xef\xbb\xbf" + lines)
    (folder / "c.json").write_text(json.dumps(ROWS, indent=2))
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "e.json.zst").write_bytes(zstandard.compress(json.dumps(ROWS).encode()))
    for name, delimiter in (("f.csv", ","), ("g.tsv", "\t")):
        with open(folder / name, "w", newline="") as stream:
            writer = csv.DictWriter(stream, ROWS[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
    (folder / "h.csv.gz").write_bytes(gzip.compress((folder / "f.csv").read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "i.parquet")
    return sorted(folder.iterdir())


def test_every_kind_of_file_gives_the_same_rows_and_line_numbers(tmp_path: Path) -> None:
    paths = write_all_kinds(tmp_path)
    assert len(paths) == 9
    for path in paths:
        rows = list(read_rows(str(path)))
        assert [row.value for row in rows] == ROWS, path
        indented, by_cells = path.name == "c.json", ".csv" in path.name or ".tsv" in path.name
        lines = (
            [2, 6, 10] if indented else [2, 4, 6] if by_cells else [1, 1, 1] if path.name == "e.json.zst" else [1, 2, 3]
        )
        assert [row.line for row in rows][:3] == lines, path
    assert len(load_conversations(find_files(str(tmp_path))).conversations) == 9 * 5


def test_the_format_is_reported_with_its_reason_and_can_be_set(tmp_path: Path, capsys) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"src": "q", "tgt": "a", "query": "q2", "response": "a2"}])
    with pytest.raises(UserError, match="match several formats: src_tgt or query_response"):
        load_conversations([str(path)])
    assert questions(load_conversations([str(path)], "query_response").conversations) == ["q2"]
    assert "format query_response, as requested" in capsys.readouterr().err
    plain = jsonl(tmp_path / "b.jsonl", ROWS)
    load_conversations([str(plain)])
    assert "5 conversations; format src_tgt, by its keys src, tgt" in capsys.readouterr().err
    with pytest.raises(UserError, match="--data_format srctgt: unknown. Use one of auto, src_tgt"):
        load_conversations([str(plain)], "srctgt")


def test_bad_rows_are_an_error_with_counts_and_can_be_skipped(tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        '{"src": "明", "tgt": "a"}\n\n{"src": "q"}\nno json\n{"src": "r"}\n'.encode()
        + b'\xff\n{"src": "s", "tgt": "b"}\n'
    )
    with pytest.raises(UserError) as refused:
        load_conversations([str(path)])
    message = str(refused.value)
    assert "4 bad rows (2 x no key 'tgt'; 1 x not JSON; 1 x not UTF-8)" in message
    assert (
        f"{path}, line 3: no key 'tgt'" in message
        and f"{path}, line 4: not JSON" in message
        and "--skip_bad_rows" in message
    )
    loaded = load_conversations([str(path)], skip_bad_rows=True)
    assert [c.where for c in loaded.conversations] == [f"{path}, line 1", f"{path}, line 7"]
    assert loaded.reasons == {"no key 'tgt'": 2, "not JSON": 1, "not UTF-8": 1}
    assert "skipped: 4 bad rows" in capsys.readouterr().err
    path.write_text('{"src": "q", "tgt": null}\n')
    with pytest.raises(UserError, match="no conversation. Use files with instruction rows"):
        load_conversations([str(path)], skip_bad_rows=True)
    (tmp_path / "b.json").write_text('[{"src": "q", "tgt": "a"},\n {"src": "q", ')
    with pytest.raises(UserError, match="b.json, line 2: incomplete JSON array"):
        load_conversations([str(tmp_path / "b.json")])


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('{"src": "a\tb", "tgt": "b"}', "not JSON: a tab"),
        ('{"src": "a\nb", "tgt": "b"}', "not JSON: a text is not closed"),
        ('{"src": "a", "tgt": "b"},', "not JSON: a comma after the object"),
        ("{'src': 'a', 'tgt': 'b'}", "not JSON: single quotes"),
        ("# rows", "not JSON: a comment"),
        ("rows", "not JSON"),
    ],
)
def test_the_cause_of_a_line_that_is_not_json_is_reported(line: str, cause: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{line}\n{{"src": "q", "tgt": "a"}}\n')
    with pytest.raises(UserError, match=f"a.jsonl, line 1: {cause}"):
        load_conversations([str(file)])


def test_splits_of_a_folder_may_have_several_names(tmp_path: Path, monkeypatch) -> None:
    for name in (
        "paddle/train.json",
        "paddle/dev.json",
        "split/train/a.jsonl",
        "split/train/b.jsonl",
        "split/validation.jsonl",
    ):
        jsonl(tmp_path / name, ROWS[:2])
    jsonl(tmp_path / "flat/x.jsonl", ROWS)
    found = {name: [[Path(f).name for f in find_files(str(tmp_path / name), s)] for s in ("train", "dev", "test")]
             for name in ("paddle", "split", "flat", "flat/x.jsonl")}  # fmt: skip
    assert found == {
        "paddle": [["train.json"], ["dev.json"], []],
        "split": [["a.jsonl", "b.jsonl"], ["validation.jsonl"], []],
        "flat": [["x.jsonl"], [], []],
        "flat/x.jsonl": [["x.jsonl"], [], []],
    }
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--dataset_name_or_path is not set and ./data/train.json does not exist"):
        find_files(None)
    (tmp_path / "paddle").rename(tmp_path / "data")
    assert find_files(None) == ["data/train.json"] and find_files(None, "dev") == ["data/dev.json"]
    with pytest.raises(UserError, match="no such file or folder"):
        find_files("nowhere.jsonl")
    jsonl(tmp_path / "only_dev/dev.json", ROWS)
    with pytest.raises(UserError, match="no training data in the folder"):
        find_files("only_dev")


def conversations(name: str, count: int) -> list[Conversation]:
    return [Conversation((Turn("user", f"{name}{i}"), Turn("assistant", "a"))) for i in range(count)]


def test_a_blend_follows_the_weights_and_contains_every_row(tmp_path: Path, capsys) -> None:
    blend = ConversationBlend([conversations("a", 30), conversations("b", 10)], [1.0, 1.0], seed=1)
    names = questions(blend)
    assert len(blend) == 60 and set(names) == {f"a{i}" for i in range(30)} | {f"b{i}" for i in range(10)}
    assert all(abs(sum(n[0] == "a" for n in names[:k]) - k / 2) <= 1 for k in range(61))
    thrice = [n for n in names if n[0] == "b"]
    assert sorted(thrice[:10]) == sorted(thrice[10:20]) and thrice[:10] != thrice[10:20]
    again, other = (
        questions(ConversationBlend([conversations("a", 30), conversations("b", 10)], [1.0, 1.0], s)) for s in (1, 2)
    )
    assert names == again != other
    for count in (1, 7, 29):  # sizes that do not divide the weights
        uneven = ConversationBlend([conversations("a", 13), conversations("b", count)], [0.3, 0.7], seed=0)
        assert set(questions(uneven)) == {f"a{i}" for i in range(13)} | {f"b{i}" for i in range(count)}
    a, b = jsonl(tmp_path / "a.jsonl", ROWS), jsonl(tmp_path / "b/train.json", ROWS[:2])
    jsonl(tmp_path / "b/dev.json", ROWS[:1])
    mixed = load_split(f"0.5 {a} 0.5 {b.parent}")
    assert len(mixed) == 10 and "2 conversations give 5 of 10 samples of an epoch" in capsys.readouterr().err
    assert len(load_split(f"0.5 {a} 0.5 {b.parent}", "dev")) == 1
    assert list(load_split(str(a), "dev")) == []
    with pytest.raises(UserError, match="--dataset_name_or_path .*: not pairs of weight and path: 3 words"):
        load_split(f"0.5 {a} {b}")
    for commas in (f"{a},{b}", f"{a}, {b}"):
        with pytest.raises(UserError, match=f"comma-separated paths are not supported.*1 {a} 1 {b}"):
            load_split(commas)


def test_data_that_is_inspected_and_then_loaded_reports_a_file_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("instruction,input,output\nq,NA,a\n")
    describe_data(str(tmp_path / "a.csv"))
    load_conversations([str(tmp_path / "a.csv")])
    assert capsys.readouterr().err.count("cells such as NA") == 1
