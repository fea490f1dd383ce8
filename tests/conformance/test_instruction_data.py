"""Rows and splits of instruction data equal those of `datasets.load_dataset`, are an error, or differ as documented."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from paddle_llm.config.local_files.data_splits import sort_into_splits
from paddle_llm.config.local_files.split_names import kind_of_file
from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.data_files import find_files
from paddle_llm.data.instructions.files import load_conversations
from paddle_llm.data.instructions.formats import read_row, recognize
from paddle_llm.data.instructions.rows import read_rows
from paddle_llm.data.instructions.table_rows import without_nulls

os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
REFUSED = "refused"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(100)
    cache, config = tmp_path_factory.mktemp("cache"), datasets.config
    before = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH)
    config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH = cache, cache / "downloads"
    config.EXTRACTED_DATASETS_PATH = cache / "extracted"
    yield datasets
    config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH = before


def reference(datasets: Any, path: Path) -> Any:
    """Return the rows of a file from `load_dataset`, without nulls; REFUSED if it raises an error."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    kind = kind_of_file(name)
    options = {"sep": "\t"} if name.endswith(".tsv") else {}
    if kind == "csv":  # cells as text, since numbers would be converted; see also test_words_for_missing_cells
        options |= {"keep_default_na": False, "na_filter": False}
    try:
        return without_nulls(datasets.load_dataset(kind, data_files=str(path), split="train", **options).to_list())
    except Exception:  # there are many types of errors
        return REFUSED


def ours(path: Path) -> Any:
    try:
        rows = list(read_rows(str(path)))
    except UserError:
        return REFUSED
    return REFUSED if any(row.problem for row in rows) else without_nulls([row.value for row in rows])


# ---- rows ------------------------------------------------------------------------------------------------------------

A, B = {"a": "q0", "b": "x"}, {"a": "q1 明月 😀", "b": "y\nz"}
J: Callable[..., str] = json.dumps
FILES = {
    "lines.jsonl": f"{J(A)}\n{J(B)}\n",
    "ndjson.ndjson": f"{J(A)}\n{J(B)}\n",
    "no_end.jsonl": f"{J(A)}\n{J(B, ensure_ascii=False)}",
    "crlf.jsonl": f"{J(A)}\r\n{J(B)}\r\n",
    "cr.jsonl": f"{J(A)}\r{J(B)}\r",
    "blank_lines.jsonl": f"{J(A)}\n\n \n{J(B)}\n\n",
    "bom.jsonl": f"\ufeff{J(A)}\n{J(B)}\n",
    "array.json": J([A, B]),
    "indented_array.json": J([A, B], indent=2),
    "one_object.json": J(A, indent=2),
    "objects.json": J(A, indent=2) + "\n" + J(B, indent=4),
    "objects_on_a_line.jsonl": f"{J(A)}{J(B)} {J(A)}\n{J(B)}\n",
    "separators.jsonl": J({"a": "x\u2028y\x85z\x0cw\x0b"}, ensure_ascii=False) + "\n" + J({"a": "ok"}) + "\n",
    "nulls.jsonl": f"{J({'a': 'q', 'b': None})}\n{J({'a': None, 'b': 'y'})}\n",
    "absent.jsonl": f"{J({'a': 'q'})}\n{J({'b': 'y'})}\n",
    "nested.jsonl": f"{J({'m': [{'role': 'user', 'content': 'x', 'w': None}, {'role': 'a', 'content': 'y', 'w': 1}]})}\n",
    "other_objects.jsonl": f"{J({'m': {'x': 1}})}\n{J({'m': {'y': 'k'}})}\n",
    "numbers.jsonl": f"{J({'a': 1})}\n{J({'a': 2.5})}\n",
    "cells.csv": 'a,b\r\nq0,x\r\n"q1, 明月","y\n""z"""\r\nq2,\r\n',
    "bom.csv": "\ufeffa,b\nx,y\n",
    "blank_lines.csv": "a,b\n\nx,y\n\n",
    "cr.csv": "a,b\rx,y\r",
    "index.csv": ",a,\ni,x,\nj,y,z\n",
    "blank_start.csv": "\n\na,b\nx,y\n",
    "numbers.tsv": "a\tb\nx1\ty \"q\" z\n",
}  # fmt: skip
DAMAGED = {
    "text_behind_array.json": f"[{J(A)}] garbage",
    "text_behind_object.json": J(A, indent=2) + " garbage",
    "text_between.jsonl": f"{J(A)}\nno json\n{J(B)}\n",
    "cut_line.jsonl": f"{J(A)}\n{J(B)[:-4]}",
    "cut_array.json": J([A, B])[:-5],
    "cut_indented.json": J([A, B], indent=2)[:-20],
    "comma_at_end.json": f"[{J(A)},{J(B)},]",
    "no_comma.json": f"[{J(A)} {J(B)}]",
    "duplicate_key.jsonl": '{"a": "q", "a": "r"}\n',
    "single_quotes.jsonl": "{'a': 'x'}\n",
    "scalar.jsonl": "5\n",
    "open_quote.csv": 'a,b\n"x""y",z\n"open,z\n',
    "gbk.jsonl": '{"a": "你好"}\n'.encode("gbk"),
    "latin.csv": "a,b\ncafé,x\n".encode("latin-1"),
}  # fmt: skip


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_rows_equal_the_reference(datasets: Any, tmp_path: Path) -> None:
    for name, content in FILES.items():
        path = write(tmp_path / name, content)
        rows = reference(datasets, path)
        assert rows != REFUSED and ours(path) == rows, name
        for suffix, pack in ((".gz", gzip.compress), (".zst", zstandard.compress)):
            assert ours(write(tmp_path / f"{name}{suffix}", pack(content.encode()))) == rows, (name, suffix)
        for encoding in ("utf-16", "utf-16-le", "utf-32-be"):  # the reference does not read these
            assert ours(write(tmp_path / f"{encoding}_{name}", content.lstrip("\ufeff").encode(encoding))) == rows, (
                name,
                encoding,
            )


def test_compressed_files_equal_the_reference(datasets: Any, tmp_path: Path) -> None:
    for name in ("lines.jsonl", "array.json", "cells.csv"):
        for suffix, pack in ((".gz", gzip.compress), (".zst", zstandard.compress)):
            path = write(tmp_path / f"{name}{suffix}", pack(FILES[name].encode()))
            rows = reference(datasets, path)
            assert ours(path) == rows != REFUSED, path.name


def test_files_rejected_by_the_reference_are_an_error_with_the_file(datasets: Any, tmp_path: Path) -> None:
    for name, content in DAMAGED.items():
        path = write(tmp_path / name, content)
        assert reference(datasets, path) == REFUSED, name
        assert ours(path) == REFUSED, name
        with pytest.raises(UserError, match=name):
            load_conversations([str(path)])


def test_words_for_missing_cells_of_csv_equal_the_reference(datasets: Any, tmp_path: Path, capsys: Any) -> None:
    words = [
        "NA",
        "N/A",
        "null",
        "NULL",
        "None",
        "nan",
        "NaN",
        "<NA>",
        "#N/A",
        "n/a",
        "none",
        "nil",
        "Null",
        "NONE",
        "-",
        "0.5x",
    ]
    path = write(tmp_path / "na.csv", "a,b\n" + "".join(f"{word},text\n" for word in words))
    found = datasets.load_dataset("csv", data_files=str(path), split="train").to_list()
    assert ours(path) == without_nulls(found)
    assert "10 cells such as NA" in capsys.readouterr().err


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_are_reported(tmp_path: Path, delimiter: str) -> None:
    path = write(tmp_path / "cells.csv", f"instruction{delimiter}output\nq{delimiter}a\n")
    with pytest.raises(UserError, match=": cells are separated by"):
        list(read_rows(str(path)))


def test_a_nul_character_in_csv_is_an_error_where_the_reference_drops_it(datasets: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "nul.csv", "a,b\nx\0,y\n")
    assert reference(datasets, path) == [{"a": "x", "b": "y"}]
    with pytest.raises(UserError, match=r"nul.csv, line 2: NUL character"):
        list(read_rows(str(path)))


def test_a_git_lfs_pointer_is_reported(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        path = write(tmp_path / name, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
        with pytest.raises(UserError, match="git lfs pull"):
            list(read_rows(str(path)))


def test_documented_differences(datasets: Any, tmp_path: Path) -> None:
    arrays = write(tmp_path / "arrays.json", f"{J([A])}\n{J([B, A])}")
    assert reference(datasets, arrays) == REFUSED and ours(arrays) == [A, B, A]
    wrapped = write(tmp_path / "wrapped.json", J({"version": "1", "data": [A, B]}, indent=1))
    assert len(reference(datasets, wrapped)) == 1 and ours(wrapped) == [A, B]
    assert ours(write(tmp_path / "in_a_line.json", J({"data": [A, B]}))) == [A, B]
    splits = write(tmp_path / "splits.json", J({"train": [A], "test": [B]}))
    assert ours(splits) == REFUSED
    assert ours(write(tmp_path / "many_cells.csv", "a,b\nx,y,z\n")) == REFUSED  # the reference shifts the cells
    assert ours(write(tmp_path / "short.csv", "a,b\nx\ny,z\n")) == [
        {"a": "x"},
        {"a": "y", "b": "z"},
    ]  # null, as read by default
    assert ours(write(tmp_path / "two_names.csv", "a,a\nx,y\n")) == REFUSED  # the reference renames the second
    surrogate = write(tmp_path / "s.jsonl", '{"src": "\\ud83d", "tgt": "a"}\n{"src": "q", "tgt": "b"}\n')
    assert reference(datasets, surrogate) == REFUSED
    with pytest.raises(UserError, match=r"s.jsonl, line 1: half of a character"):
        load_conversations([str(surrogate)])
    assert len(load_conversations([str(surrogate)], skip_bad_rows=True).conversations) == 1


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([2**61], pyarrow.timestamp("us")),
        pyarrow.array([2**30], pyarrow.date32()),
        pyarrow.array([b"\xff"]).view(pyarrow.string()),
    ],
)
def test_parquet_values_without_a_python_value_are_an_error(datasets: Any, tmp_path: Path, column: Any) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"src": ["q"], "at": column}), path)
    assert reference(datasets, path) == REFUSED
    with pytest.raises(UserError, match=r"a.parquet: column 'at' has a value that cannot be read"):
        list(read_rows(str(path)))


def test_parquet_columns_of_every_type_equal_the_reference(datasets: Any, tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "q", "n": None}], [{"role": "a", "content": "b", "n": 2**60}], None]
    table = pyarrow.table(
        {
            "text": pyarrow.array(["x", None, "明"], pyarrow.large_string()),
            "coded": pyarrow.array(["a", "b", "a"]).dictionary_encode(),
            "messages": messages,
            "view": pyarrow.array(["v", "w", None], pyarrow.string()),
            "flag": [True, None, False],
            "nothing": pyarrow.nulls(3),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert ours(tmp_path / "a.parquet") == reference(datasets, tmp_path / "a.parquet")
    pairs = pyarrow.array([[("k", "v")], [], [("l", None)]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    pyarrow.parquet.write_table(pyarrow.table({"m": pairs}), tmp_path / "map.parquet")
    assert [row.value for row in read_rows(str(tmp_path / "map.parquet"))] == [
        {"m": {"k": "v"}},
        {"m": {}},
        {"m": {"l": None}},
    ]


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"instruction": TEXTS.map(lambda t: f"q{t}"), "output": TEXTS.map(lambda t: f"a{t}")},
        optional={"input": st.none() | TEXTS, "history": st.lists(st.tuples(TEXTS, TEXTS).map(list), max_size=2)},
    ),
    min_size=1,
    max_size=5,
)


@given(
    rows=ROWS,
    ascii=st.booleans(),
    indent=st.none() | st.integers(0, 2),
    newline=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_hostile_rows_equal_the_reference(datasets: Any, tmp_path_factory, rows, ascii, indent, newline) -> None:
    folder = tmp_path_factory.mktemp("rows")
    lines = newline.join(json.dumps(row, ensure_ascii=ascii) for row in rows)
    cells = [{key: row[key] for key in ("instruction", "output")} for row in rows]
    files = {
        "lines.jsonl": lines,
        "array.json": json.dumps(rows, ensure_ascii=ascii, indent=indent),
        "objects.json": "".join(json.dumps(row, ensure_ascii=ascii, indent=indent) for row in rows),
    }
    for name, content in files.items():
        path = write(folder / name, content)
        found, expected = ours(path), reference(datasets, path)
        assert found == without_nulls(rows), name
        assert expected in (found, REFUSED), name  # ujson rejects some texts that json reads
    datasets.Dataset.from_list(cells).to_csv(folder / "cells.csv", index=False)
    expected = reference(datasets, folder / "cells.csv")
    assert expected != REFUSED
    # An unquoted carriage return ends a line; missing cells are null here, and empty without the filter of nulls.
    found, expected = (
        [{key: text for key, text in row.items() if text} for row in one]
        for one in (ours(folder / "cells.csv"), expected)
    )
    assert found == expected
    datasets.Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    datasets.Dataset.from_list(rows).to_json(folder / "written.jsonl")
    for name in ("rows.parquet", "written.jsonl"):
        assert ours(folder / name) == reference(datasets, folder / name) != REFUSED


@given(
    content=st.binary(max_size=200),
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.json.gz", "a.csv.zst"]),
)
def test_any_bytes_are_read_or_an_error(tmp_path_factory, content: bytes, name: str) -> None:
    path = write(tmp_path_factory.mktemp("bytes") / name, content)
    try:
        load_conversations([str(path)])
    except UserError as error:
        assert name in str(error)


# ---- conversations ---------------------------------------------------------------------------------------------------

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    }
]
U, W = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
JOINED = [  # rows of several schemas in one file
    [{"instruction": "q", "input": "", "output": "a"}, {"messages": [U, W]}, {"prompt": "q", "completion": "a"}],
    [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, {"conversations": [U, W]}],
    [{"messages": [U, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                   {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "f"}, W], "tools": TOOLS},
     {"messages": [U, {**W, "reasoning_content": "r"}]}, {"messages": [U, {**W, "weight": 0}, U, {**W, "weight": 1}]}],
    [{"prompt": [U], "completion": [W], "chat_template_kwargs": {"enable_thinking": False}}, {"prompt": [U, W, U], "completion": [W]}],
    [{"question": "q", "answer": "a"}, {"question": "q", "answer": "a", "context": "c"}, {"query": "q", "response": "a", "history": [["x", "y"]]}],
]  # fmt: skip


@pytest.mark.parametrize("rows", JOINED)
def test_rows_of_merged_schemas_give_the_same_conversations(datasets: Any, tmp_path: Path, rows) -> None:
    alone = [read_row(row, recognize([row], "f")) for row in rows]
    write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    joined = datasets.load_dataset("json", data_files=str(tmp_path / "a.jsonl"), split="train")
    joined.to_parquet(tmp_path / "b.parquet")
    keys = {key: None for row in rows for key in row}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**keys, **row} for row in rows]), tmp_path / "c.parquet")
    write(tmp_path / "d.json", json.dumps([{**keys, **row} for row in rows], indent=1))
    for name in ("a.jsonl", "b.parquet", "c.parquet", "d.json"):
        found = load_conversations([str(tmp_path / name)]).conversations
        assert [(c.turns, c.fields) for c in found] == [(c.turns, c.fields) for c in alone], name


# ---- splits ----------------------------------------------------------------------------------------------------------

LAYOUTS = [
    ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation-00000-of-00001.parquet", "test-00000-of-00001.parquet"],
    ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "README.md", ".gitattributes", "LICENSE"],
    ["default/train/0000.parquet", "default/test/0000.parquet", "default/validation/0000.parquet"],
    ["plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"],
    ["train_0.jsonl", "train_1.jsonl", "test_0.jsonl", "dev.jsonl"],
    ["train.json", "valid.json", "test.json"],
    ["my-train.csv", "my-val.csv", "my.test.csv"],
    ["train/a.jsonl", "train/b.jsonl", "validation/a.jsonl"],
    ["data/train/a.jsonl", "data/test/a.jsonl", "data/dev/a.jsonl"],
    ["a.jsonl", "b.jsonl", "README.md"],
    ["sub/a.jsonl", "sub/b.jsonl", "c.jsonl"],
    ["training.jsonl", "testing.jsonl"],
    ["train1.jsonl", "test1.jsonl"],
    ["2024 train.jsonl", "2024 test.jsonl"],
    ["latest.jsonl", "contest.jsonl"],
    ["train.jsonl", "extra.jsonl"],
    ["test.jsonl", "extra.jsonl"],
    ["en/train.jsonl", "de/train.jsonl", "en/test.jsonl"],
    ["train.jsonl.gz", "test.jsonl.zst"],
]  # fmt: skip


def layout(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        row = json.dumps({"src": name, "tgt": "a"}) + "\n"
        if name.endswith(".parquet"):
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"src": name, "tgt": "a"}]), path)
        elif name.endswith(".csv"):
            write(path, f"src,tgt\n{name},a\n")
        else:
            pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
            write(path, pack(row.encode()))
    return folder


def reference_splits(datasets: Any, folder: Path) -> dict[str, set[str]]:
    """Return relative paths of the data files by our names of the splits."""
    from datasets.data_files import get_data_patterns, resolve_pattern

    ours = {"train": "train", "validation": "dev", "test": "test"}
    found: dict[str, set[str]] = {}
    for split, patterns in get_data_patterns(str(folder)).items():
        for pattern in patterns:
            try:
                files = resolve_pattern(pattern, str(folder))
            except FileNotFoundError:
                continue
            names = {os.path.relpath(file, folder) for file in files}
            found.setdefault(ours.get(split, split), set()).update(name for name in names if kind_of_file(name))
    return found


def our_splits(folder: Path) -> dict[str, set[str]]:
    found = sort_into_splits(str(folder)).check()
    return {split: {os.path.relpath(f, folder) for f in files} for split, files in found.files.items() if files}


def test_splits_of_folders_equal_the_reference(datasets: Any, tmp_path: Path) -> None:
    for number, names in enumerate(LAYOUTS):
        folder = layout(tmp_path / f"d{number}", names)
        assert our_splits(folder) == reference_splits(datasets, folder), names


def test_rows_of_splits_equal_the_reference(datasets: Any, tmp_path: Path) -> None:
    for number in (0, 1, 2, 4, 6, 7, 18):
        folder = layout(tmp_path / f"d{number}", LAYOUTS[number])
        expected = datasets.load_dataset(str(folder))
        for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
            files = find_files(str(folder), name)
            found = [row.value for file in files for row in read_rows(file)]
            rows = expected[split].to_list() if split in expected else []
            assert found == rows, (LAYOUTS[number], split)


NAMES = st.tuples(
    st.sampled_from(["", "", "data/", "train/", "test/", "dev/", "en/", "my_test/"]),
    st.sampled_from(["train", "training", "dev", "valid", "validation", "val", "test", "testing", "eval", "a", "latest", "x_train_y",
                     "holdout", "test_train", "train_test", "my-val", "testset", "Test", "trainA", "测试", "b.test.v2"]),
    st.sampled_from(["", "_0", "-1", "2", "-00000-of-00001", " 3"]),
    st.sampled_from([".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".txt", ".md"]),
).map("".join)  # fmt: skip
SPLIT_WORDS = ("train", "dev", "val", "test", "eval")


@given(names=st.lists(NAMES, min_size=1, max_size=5, unique=True))
def test_no_file_of_another_split_is_trained_on(datasets: Any, tmp_path_factory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("splits")
    for name in names:
        write(folder / name, "")
    try:
        found = our_splits(folder)
    except UserError:
        return
    try:
        reference = reference_splits(datasets, folder)
    except ValueError:  # a split name that datasets does not allow
        return
    others = reference.get("dev", set()) | reference.get("test", set())
    assert not found.get("train", set()) & (others - reference.get("train", set())), names
    for name in found.get("train", ()):
        assert not {"test", "dev", "validation", "eval", "holdout", "testset"} & set(
            name.lower().replace("/", "_").split("_")
        ), name


def test_file_names_that_are_an_error_or_skipped(tmp_path: Path, capsys) -> None:
    for names, message in (
        (["train.jsonl", "test_train.jsonl"], "test_train.jsonl.*contains words of the splits test and train"),
        (["train/test.jsonl", "train/a.jsonl"], "train/test.jsonl.*test and train"),
        (["train.arrow", "test.jsonl"], "train.arrow.*unsupported format.*load_from_disk"),
        (["data-00000-of-00001.arrow", "state.json", "dataset_info.json"], r"load_from_disk\(FOLDER\).to_parquet"),
        (["data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"], "train_gen, train_sft"),
        (
            ["a.jsonl", "test.jsonl"],
            "no training data.*test: .*test.jsonl.*rename the training files so that their names contain train",
        ),
        (["holdout.jsonl", "a.jsonl"], "no training data"),
        (["train.csv", "train.jsonl"], "train.csv and .*train.jsonl have the same name in several formats"),
        (["json/data.jsonl", "csv/data.csv.gz"], "have the same name in several formats"),
    ):
        folder = layout(tmp_path / names[0].replace("/", "_"), [n for n in names if not n.endswith(".arrow")])
        (folder / names[0]).touch()
        with pytest.raises(UserError, match=f"(?s){message}"):
            find_files(str(folder))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "dev.jsonl").symlink_to("nowhere")
    with pytest.raises(UserError, match="dev.jsonl is a link to a file that does not exist"):
        find_files(str(tmp_path / "links"))
    folder = layout(tmp_path / "several", ["train_a.jsonl", "train_b.csv"])
    assert len(find_files(str(folder))) == 2
    assert "the train data has several formats, and all are read: csv, json" in capsys.readouterr().err
    folder = layout(tmp_path / "beside", ["train.jsonl"])
    for name in ("train.txt", "train_config.yaml", "training_args.bin"):
        (folder / name).touch()
    assert [Path(f).name for f in find_files(str(folder))] == ["train.jsonl"]
    assert "train.txt, train_config.yaml, training_args.bin: unsupported format" in capsys.readouterr().err
    folder = layout(
        tmp_path / "mixed", ["train.jsonl", "extra.jsonl", "holdout.jsonl", "val.jsonl", "eval.jsonl", "README.md"]
    )
    assert {split: {Path(f).name for f in find_files(str(folder), split)} for split in ("train", "dev", "test")} == {
        "train": {"train.jsonl"}, "dev": {"val.jsonl"}, "test": {"eval.jsonl"},
    }  # fmt: skip
    shown = capsys.readouterr().err
    assert (
        "skipped: extra.jsonl: its name does not contain a split" in shown
        and "holdout.jsonl: held-out data by its name" in shown
    )
    assert [Path(f).name for f in find_files(f"{folder}/*.jsonl")] == ["train.jsonl"]


def test_outputs_and_models_below_the_data_are_skipped(tmp_path: Path, capsys) -> None:
    files = ["train.jsonl", "more/train_2.jsonl", "out/metrics.jsonl", "out/checkpoint-2/train.bin"]
    folder = layout(tmp_path / "data", files)
    for name in ("out/config.resolved.json", "base/tokenizer_config.json", "lora/adapter_config.json"):
        write(folder / name, "{}")
    assert {Path(f).name for f in find_files(str(folder))} == {"train.jsonl", "train_2.jsonl"}
    assert "base, lora, out: output of a training, model or adapter" in capsys.readouterr().err


def test_splits_that_a_readme_declares_equal_the_reference(datasets: Any, tmp_path: Path, capsys: Any) -> None:
    folder = layout(tmp_path / "declared", ["a.jsonl", "b.jsonl", "c.jsonl"])
    entries = "  - split: train\n    path: a.jsonl\n  - split: test\n    path: [b.jsonl]\n"
    write(folder / "README.md", f"---\nconfigs:\n- config_name: default\n  data_files:\n{entries}---\n# Data\n")
    expected = datasets.load_dataset(str(folder))
    assert set(expected) == {"train", "test"}
    for split in expected:
        assert [row.value for f in find_files(str(folder), split) for row in read_rows(f)] == expected[split].to_list()
    layout(folder, ["en/train.jsonl", "zh/train.jsonl", "zh/test.jsonl"])
    write(folder / "README.md", "---\nconfigs:\n- config_name: default\n  data_dir: zh\n  sep: ';'\n---\n")
    expected = datasets.load_dataset(str(folder))
    assert set(expected) == {"train", "test"}
    for split in expected:
        assert [row.value for f in find_files(str(folder), split) for row in read_rows(f)] == expected[split].to_list()
    assert "these settings of the configuration have no effect: sep" in capsys.readouterr().err
    two = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in ("en", "zh"))
    write(folder / "README.md", f"---\nconfigs:\n{two}---\n")
    with pytest.raises(UserError, match="several configurations: en, zh"):
        find_files(str(folder))
    two = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in "ab")
    write(folder / "README.md", f"---\nconfigs:\n{two}---\n")
    with pytest.raises(UserError, match="several configurations: a, b"):
        find_files(str(folder))


def test_a_download_cache_is_not_read_with_all_its_revisions(tmp_path: Path) -> None:
    cache = tmp_path / "datasets--a--b"
    for revision in ("0a1", "0b2"):
        write(cache / "snapshots" / revision / "train.jsonl", J(A) + "\n")
    (cache / "refs").mkdir()
    with pytest.raises(UserError, match="2 revisions of a data set. Give the folder of one, such as .*0a1"):
        find_files(str(cache))
    assert find_files(str(cache / "snapshots" / "0a1")) == [str(cache / "snapshots" / "0a1" / "train.jsonl")]
    joined = write(tmp_path / "joined.jsonl", f"{J(A)}\n\ufeff{J(B)}\n")
    assert ours(joined) == [A, B]
