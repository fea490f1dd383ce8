"""Outputs are written completely or not at all, files of other people stay untouched, and permissions follow the umask."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.core import atomic_output
from paddle_llm.core.atomic_output import MARK, check_apart, check_replaceable, staged_folder, write_atomically
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.files import write_safetensors


def write(out: Path, text: str = "new", error: BaseException | None = None) -> None:
    with staged_folder(out) as staged:
        (staged / "file").write_text(text)
        if error is not None:
            raise error


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folder_appears_under_its_name_and_replaces_the_previous_one(tmp_path):
    for text in ("old", "new"):
        write(tmp_path / "some" / "where" / "out", text)
        assert (tmp_path / "some" / "where" / "out" / "file").read_text() == text
    assert names(tmp_path / "some" / "where") == {"out"} and names(tmp_path / "some" / "where" / "out") == {"file"}


@pytest.mark.parametrize(
    "error, raised",
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ZeroDivisionError(), ZeroDivisionError),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError),
    ],
)
def test_failed_write_keeps_the_previous_folder(error, raised, tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(raised):
        write(tmp_path / "out", "new", error)
    with pytest.raises(raised):
        write(tmp_path / "new" / "er" / "out", "new", error)
    assert names(tmp_path) == {"out"} and (tmp_path / "out" / "file").read_text() == "old"


def test_leftovers_are_removed_and_folders_of_other_people_are_not(tmp_path):
    """If a folder without a mark has the temporary name, the next free name is used."""
    for name, mark in (("out.saving", "thesis.txt"), ("out.saving1", MARK)):
        (tmp_path / name).mkdir()
        (tmp_path / name / mark).touch()
    write(tmp_path / "out")
    assert names(tmp_path) == {"out", "out.saving"} and names(tmp_path / "out.saving") == {"thesis.txt"}
    assert names(tmp_path / "out") == {"file"}


def test_second_writer_of_a_folder_is_refused(tmp_path):
    with staged_folder(tmp_path / "out") as first:
        (first / "weights").touch()
        with pytest.raises(UserError, match="is being written by another command"):
            write(tmp_path / "out")
        assert names(first) == {MARK, "weights"} and names(tmp_path) == {"out.saving"}
    assert names(tmp_path / "out") == {"weights"}


def test_second_writer_is_refused_until_the_first_has_flushed_everything(tmp_path, monkeypatch):
    """Flushing a large folder takes minutes. It is not a leftover in that time, and `out` may be created by someone else."""
    refused = []

    def record_flush(path):
        with pytest.raises(UserError, match="is being written by another command"):
            write(tmp_path / "out")
        refused.append(path.name)
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "thesis.txt").touch()

    monkeypatch.setattr(atomic_output, "flush", record_flush)
    with pytest.raises(UserError, match="another process has written it meanwhile"):
        write(tmp_path / "out")
    assert set(refused) == {"file", MARK, "out.saving"} and names(tmp_path) == {"out"}


def test_leftover_of_a_killed_process_is_removed(tmp_path):
    """The lock ends with the process, however it ends."""
    script = (
        "import os, pathlib, sys; from paddle_llm.core.atomic_output import staged_folder\n"
        "with staged_folder(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL and names(tmp_path) == {"out.saving"}
    write(tmp_path / "out")
    assert names(tmp_path) == {"out"}


def test_folder_that_changed_meanwhile_is_not_replaced(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(UserError, match="another process has written it meanwhile"), staged_folder(tmp_path / "out"):
        (tmp_path / "out").rename(tmp_path / "before")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").touch()
    assert names(tmp_path) == {"before", "out"} and names(tmp_path / "out") == {"thesis.txt"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="another process has written it meanwhile"), staged_folder(tmp_path / "empty"):
        (tmp_path / "empty" / "thesis.txt").touch()
    assert names(tmp_path / "empty") == {"thesis.txt"}


def test_sigterm_interrupts_the_write_unless_a_handler_is_installed(tmp_path):
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "out"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert names(tmp_path) == set() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        with staged_folder(tmp_path / "out"):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [1] and names(tmp_path) == {"out"}


def test_folder_that_cannot_be_created_is_reported():
    with pytest.raises(UserError, match=r"/proc/out cannot be written: .*\. Choose another folder\."):
        write(Path("/proc/out"))


def test_which_folders_may_be_replaced(tmp_path):
    check_replaceable(tmp_path / "absent", "sign", "export", overwrite=False)
    check_replaceable(tmp_path, "sign", "export", overwrite=False)
    (tmp_path / "thesis").touch()
    for out, overwrite, message in (
        (tmp_path, False, "not empty.*--overwrite"),
        (tmp_path, True, r"is not an export \(it has no sign\).*Remove it yourself"),
        (tmp_path / "thesis", True, "is a file"),
    ):
        with pytest.raises(UserError, match=message):
            check_replaceable(out, "sign", "export", overwrite)
    (tmp_path / "sign").touch()
    check_replaceable(tmp_path, "sign", "export", overwrite=True)


def test_output_folder_that_contains_an_input_is_refused(tmp_path):
    check_apart(tmp_path / "out", None, tmp_path / "in")
    for out in (tmp_path / "in", tmp_path):
        with pytest.raises(UserError, match="is or contains the input"):
            check_apart(out, None, tmp_path / "in")


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o027, 0o640)])
def test_permissions_follow_the_umask(tmp_path, mask, expected):
    """safetensors and tempfile create files with mode 0600, which no other user could read."""
    weights = {"weight": np.zeros(3, np.float32)}
    with umask(mask):
        with staged_folder(tmp_path / "out") as staged:
            (staged / "sub").mkdir()
            for file in (staged / "private", staged / "sub" / "private"):
                os.close(os.open(file, os.O_CREAT, 0o600))
            os.close(os.open(staged / "script", os.O_CREAT, 0o700))
        write_atomically(tmp_path / "file", b"content")
        write_safetensors(tmp_path / "model.safetensors", weights)
    for file in ("out/private", "out/sub/private", "file", "model.safetensors"):
        assert oct(mode(tmp_path / file)) == oct(expected), file
    assert oct(mode(tmp_path / "out" / "script")) == oct(expected | 0o100)


def test_file_is_replaced_completely_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "file"
    write_atomically(file, b"old")
    with pytest.raises(UserError, match="cannot be written: .* Try something else."):
        write_atomically(file / "below", b"new", "Try something else.")
    assert file.read_bytes() == b"old" and names(tmp_path / "new") == {"file"}
