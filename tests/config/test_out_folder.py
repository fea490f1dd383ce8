"""A folder is there whole or not at all, and nothing of anybody else's is touched on the way."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_llm.core import atomic_output as out_folder
from paddle_llm.core.atomic_output import MARK, check_apart, check_replaceable, staged_folder
from paddle_llm.core.errors import UserError


def write(out: Path, text: str = "new", end: BaseException | None = None) -> None:
    with staged_folder(out) as staged:
        (staged / "file").write_text(text)
        if end is not None:
            raise end


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_appears_with_its_name_and_replaces_what_was_there(tmp_path):
    for text in ("old", "new"):
        write(tmp_path / "some" / "where" / "out", text)
        assert (tmp_path / "some" / "where" / "out" / "file").read_text() == text
    assert names(tmp_path / "some" / "where") == {"out"} and names(tmp_path / "some" / "where" / "out") == {"file"}


@pytest.mark.parametrize(
    "end, raised",
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ZeroDivisionError(), ZeroDivisionError),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError),
    ],
)
def test_what_fails_leaves_what_was_there(end, raised, tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(raised):
        write(tmp_path / "out", "new", end)
    with pytest.raises(raised):
        write(tmp_path / "new" / "er" / "out", "new", end)
    assert names(tmp_path) == {"out"} and (tmp_path / "out" / "file").read_text() == "old"


def test_leftovers_are_removed_and_what_is_somebodys_is_not(tmp_path):
    """Another name is taken: what took an hour to write is not refused for a folder that stands in the way."""
    for name, mark in (("out.saving", "thesis.txt"), ("out.saving1", MARK)):
        (tmp_path / name).mkdir()
        (tmp_path / name / mark).touch()
    write(tmp_path / "out")
    assert names(tmp_path) == {"out", "out.saving"} and names(tmp_path / "out.saving") == {"thesis.txt"}
    assert names(tmp_path / "out") == {"file"}


def test_what_another_command_writes_is_left_alone(tmp_path):
    with staged_folder(tmp_path / "out") as first:
        (first / "weights").touch()
        with pytest.raises(UserError, match="is being written by another command"):
            write(tmp_path / "out")
        assert names(first) == {MARK, "weights"} and names(tmp_path) == {"out.saving"}
    assert names(tmp_path / "out") == {"weights"}


def test_the_second_is_refused_until_the_first_has_all_on_the_disk(tmp_path, monkeypatch):
    """Writing a large folder to the disk takes minutes, in which it is not a leftover, and OUT is nobody's."""
    refused = []

    def flush(path):
        with pytest.raises(UserError, match="is being written by another command"):
            write(tmp_path / "out")
        refused.append(path.name)
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "thesis.txt").touch()

    monkeypatch.setattr(out_folder, "_flush", flush)
    with pytest.raises(UserError, match="somebody else has written there"):
        write(tmp_path / "out")
    assert set(refused) == {"file", MARK, "out.saving"} and names(tmp_path) == {"out"}


def test_what_a_killed_process_left_is_removed(tmp_path):
    """The lock goes with the process, however it ends."""
    script = (
        "import os, pathlib, sys; from paddle_llm.core.atomic_output import staged_folder\n"
        "with staged_folder(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL and names(tmp_path) == {"out.saving"}
    write(tmp_path / "out")
    assert names(tmp_path) == {"out"}


def test_what_appears_meanwhile_is_not_replaced(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(UserError, match="somebody else has written there"), staged_folder(tmp_path / "out"):
        (tmp_path / "out").rename(tmp_path / "before")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").touch()
    assert names(tmp_path) == {"before", "out"} and names(tmp_path / "out") == {"thesis.txt"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="somebody else has written there"), staged_folder(tmp_path / "empty"):
        (tmp_path / "empty" / "thesis.txt").touch()
    assert names(tmp_path / "empty") == {"thesis.txt"}


def test_sigterm_ends_it_unless_somebody_has_other_plans(tmp_path):
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "out"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert names(tmp_path) == set() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with staged_folder(tmp_path / "out"):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1] and names(tmp_path) == {"out"}


def test_where_nothing_can_be_written_is_told():
    with pytest.raises(UserError, match="/proc/out cannot be written"):
        write(Path("/proc/out"))


def test_what_may_be_replaced(tmp_path):
    check_replaceable(tmp_path / "absent", "sign", "thing", overwrite=False)
    check_replaceable(tmp_path, "sign", "thing", overwrite=False)
    (tmp_path / "thesis").touch()
    for out, overwrite, said in (
        (tmp_path, False, "not empty.*--overwrite"),
        (tmp_path, True, r"is no thing \(it has no sign\).*remove it yourself"),
        (tmp_path / "thesis", True, "is a file"),
    ):
        with pytest.raises(UserError, match=said):
            check_replaceable(out, "sign", "thing", overwrite)
    (tmp_path / "sign").touch()
    check_replaceable(tmp_path, "sign", "thing", overwrite=True)


def test_what_is_read_is_not_written_over(tmp_path):
    check_apart(tmp_path / "out", None, tmp_path / "in")
    for out in (tmp_path / "in", tmp_path):
        with pytest.raises(UserError, match="is or holds"):
            check_apart(out, None, tmp_path / "in")
