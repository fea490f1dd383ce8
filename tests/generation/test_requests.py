"""Prompt files: encodings, line ends, compression; any bytes give prompts or one message."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_llm.core.errors import UserError
from paddle_llm.generation.prompts import check_text
from paddle_llm.generation.requests import read_requests


def texts(path: Path) -> list[str]:
    return [request.text for request in read_requests(path)]


@pytest.mark.parametrize(
    ("name", "payload", "expected"),
    [
        ("a.txt", b"\xef\xbb\xbfHello\nWorld\n", ["Hello", "World"]),
        (
            "b.txt",
            "Hello\r\nWorld\u2028more\x0cand\x85so\x1cend".encode(),
            ["Hello", "World\u2028more\x0cand\x85so\x1cend"],
        ),
        ("c.txt", "\u4f60\u597d\nb".encode("utf-16"), ["\u4f60\u597d", "b"]),
        ("d.txt", "\u4f60\u597d\nb\n".encode("utf-16-le"), ["\u4f60\u597d", "b"]),
        ("e.txt.gz", gzip.compress(b"Hello\n\nWorld", mtime=0), ["Hello", "World"]),
        ("f", b"no suffix", ["no suffix"]),
    ],
)
def test_prompts_are_the_lines_of_the_text(name, payload, expected, tmp_path):
    file = tmp_path / name
    file.write_bytes(payload)
    assert texts(file) == expected


def test_zstandard(tmp_path):
    import zstandard

    file = tmp_path / "p.txt.zst"
    file.write_bytes(zstandard.compress(b"Hello\nWorld\n"))
    assert texts(file) == ["Hello", "World"]


def test_dropped_or_doubtful_settings_are_reported(tmp_path, capsys):
    file = tmp_path / "p.txt"
    file.write_text('{"a": 1}\n\n \n{"b": 2}\n')
    assert texts(file) == ['{"a": 1}', '{"b": 2}']
    printed = capsys.readouterr().err
    assert "skipped 2 empty lines of 4" in printed
    assert "every line is a JSON object and is continued as text. Rename the file to .jsonl" in printed


@pytest.mark.parametrize(
    ("name", "payload", "message"),
    [
        ("gbk.txt", "\u4f60\u597d\uff0c\u4e16\u754c\n".encode("gbk"), "iconv -f GBK -t UTF-8"),
        ("cut.txt.gz", gzip.compress(b"Hello\n" * 99, mtime=0)[:-9], "cannot be read to its end"),
        ("no.txt.gz", b"Hello", "not compressed with gzip"),
        ("empty.txt", b"", "contains no prompts"),
        ("blank.txt", b"\n \n", "contains no prompts"),
        ("packed.txt", b"PK\x03\x04....", "contains zip data"),
        ("bad.txt", "\u00e9\u00e9\u00e9\n".encode() + b"\xff\n", "line 2: not UTF-8"),
    ],
)
def test_an_unreadable_file_gives_one_message(name, payload, message, tmp_path):
    file = tmp_path / name
    file.write_bytes(payload)
    with pytest.raises(UserError, match=message):
        read_requests(file)


def test_a_folder_a_missing_file_and_a_format_without_rows(tmp_path):
    (tmp_path / "prompts.txt").write_text("Hello\n")
    with pytest.raises(UserError, match="is a folder. Name a file"):
        read_requests(tmp_path)
    with pytest.raises(UserError, match="prompt.txt does not exist. Did you mean prompts.txt"):
        read_requests(tmp_path / "prompt.txt")
    with pytest.raises(UserError, match="is not a regular file"):
        read_requests(Path("/dev/null"))
    with pytest.raises(UserError, match="--data_format alpaca applies to rows of instructions"):
        read_requests(tmp_path / "prompts.txt", "alpaca")


def test_bytes_of_another_encoding_on_the_command_line_are_refused():
    check_text("\u4f60\U0001f600", "--prompt")
    with pytest.raises(UserError, match=r"--prompt: not UTF-8 text at character 2: '.udcc4'. Write it in UTF-8"):
        check_text("a\udcc4", "--prompt")


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda text: text.encode("utf-16", "surrogatepass")))
def test_any_bytes_give_prompts_or_one_message(fuzz_folder, payload):
    file = fuzz_folder / "p.txt"
    file.write_bytes(payload)
    try:
        found = texts(file)
    except UserError:
        return
    for text in found:
        text.encode("utf-8")
        assert "\n" not in text


def test_rows_are_read_as_training_reads_them_and_what_has_no_effect_is_reported(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": "q"}], "continue_final_message": True},
        {"question": "q", "choices": ["a", "b"]},
        {"instruction": "q", "tools": [{"name": "f"}]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [request.conversation.turns[0].content for request in read_requests(file)] == ["q", "q", "q"]
    reported = capsys.readouterr().err
    assert "ignored keys: continue_final_message (1), choices (1)" in reported
    assert "passed to the chat template: tools (1 rows)" in reported
    file.write_text('["one", "two"]')
    with pytest.raises(UserError, match=r"write them to a \.txt file, one per line"):
        read_requests(file)


def test_prompts_of_preference_data_are_answered_and_that_is_reported(tmp_path, capsys):
    file = tmp_path / "dpo.jsonl"
    texts = {"prompt": "q", "chosen": "a", "rejected": "b"}
    lists = {key: [{"role": "user" if key == "prompt" else "assistant", "content": "q"}] for key in texts}
    file.write_text("".join(json.dumps(row) + "\n" for row in (texts, lists, {"prompt": "r"})))
    found = read_requests(file)
    assert [one.conversation.turns[0].content for one in found] == ["q", "q", "r"]
    assert all(one.reference is None for one in found)
    assert "2 rows are preference data. Their prompts are answered" in capsys.readouterr().err
    file.write_text(json.dumps({"chosen": lists["prompt"] + lists["chosen"], "rejected": []}) + "\n")
    with pytest.raises(UserError, match="preference data without a prompt"):
        read_requests(file)


def test_rows_of_a_parquet_file_are_called_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"input": ["q"], "kind": ["NLI"]}), tmp_path / "a.parquet")
    assert [one.where for one in read_requests(tmp_path / "a.parquet")] == [f"{tmp_path}/a.parquet, row 1"]


@pytest.mark.parametrize(
    ("answer", "reference"), [({"target": "a"}, "a"), ({"target": ""}, None), ({}, None), ({"output": "b"}, "b")]
)
def test_rows_with_only_an_input_are_answered(tmp_path, answer, reference):
    (tmp_path / "a.jsonl").write_text(json.dumps({"input": "q", **answer}))
    (found,) = read_requests(tmp_path / "a.jsonl")
    assert found.conversation.turns[0].content == "q" and found.reference == reference
