"""Expansion of `~` and of variables in paths."""

from __future__ import annotations

import pytest

from paddle_llm.core.paths import PathError, expand_blend, expand_path


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("TILDE", "~/data")
    monkeypatch.setenv("NESTED", "$DATA/x")
    monkeypatch.setenv("SPACE", "/my data")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("ABSENT", raising=False)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("~", "/home/somebody"),
        ("~/a", "/home/somebody/a"),
        ("~root", "/root"),
        ("$HOME/a", "/home/somebody/a"),
        ("${DATA}1/b", "/data1/b"),
        ("a/$DATA", "a//data"),
        ("$TILDE/x", "/home/somebody/data/x"),  # a shell would leave it, and a folder named ~ would be the result
        ("$NESTED", "$DATA/x"),  # one pass: what a variable holds is not searched again
        ("$SPACE/x", "/my data/x"),
        ("a~b/~", "a~b/~"),
        ("price$5", "price$5"),
        ("$", "$"),
        ("a" * 255 + "/b", "a" * 255 + "/b"),
        ("100%/a%b%c.jsonl", "100%/a%b%c.jsonl"),
        ("a/b://c", "a/b://c"),
        ("$$HOME", "$HOME"),
        ("", ""),
        ("facebook/llama-7b", "facebook/llama-7b"),
    ],
)
def test_a_path_is_expanded(written: str, read: str) -> None:
    assert expand_path(written) == read


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("$ABSENT/x", "variable ABSENT is not defined"),
        ("${ABSENT}", "variable ABSENT is not defined"),
        ("$EMPTY/x", "variable EMPTY is empty"),
        ("${DATA:-x}", "is a shell expression. Write .NAME or"),
        ("${}", "is a shell expression. Write .NAME or"),
        ("$(pwd)/x", "is a shell expression. Write its result"),
        (" \t", "the path is blank"),
        ("out/" + "a" * 256, "more than 255 bytes"),
        ("\u4e2d" * 86, "more than 255 bytes"),
        ("%USERPROFILE%/out", "%USERPROFILE% is a variable on Windows only"),
        ("C:\\%TEMP%\\out", "%TEMP% is a variable on Windows only"),
        ("s3://bucket/out", "s3:// begins a URL"),
        ("file:///data/model", "file:// begins a URL"),
        ("~no-such-user/x", "user no-such-user is unknown"),
    ],
)
def test_paths_that_cannot_be_expanded_are_refused(written: str, why: str) -> None:
    with pytest.raises(PathError, match=why):
        expand_path(written)


def test_a_file_that_begins_with_a_tilde_is_itself(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~draft-of-mine").touch()
    assert expand_path("~draft-of-mine") == "~draft-of-mine"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("0.3 ~/a 0.7 $DATA/b", "0.3 /home/somebody/a 0.7 /data/b"),
        ("1 $DATA", "1 /data"),
        ("$DATA/b", "/data/b"),
        ("$SPACE/x", "/my data/x"),
        ("a b", "a b"),
    ],
)
def test_a_blend_is_expanded_path_by_path(written: str, read: str) -> None:
    assert expand_blend(written) == read


def test_a_path_of_a_blend_must_not_gain_a_space() -> None:
    with pytest.raises(PathError, match="cannot contain a space"):
        expand_blend("0.3 $SPACE/a 0.7 b")
