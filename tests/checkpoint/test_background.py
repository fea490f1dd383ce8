"""Checkpoints that a process beside the rank writes: what the two do when one of them is killed, or is slower."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_llm.checkpoint.folder import newest_complete
from paddle_llm.checkpoint.format.manifest import Manifest
from paddle_llm.checkpoint.format.reader import Reader
from paddle_llm.checkpoint.format.verify import problem_of
from paddle_llm.checkpoint.format.writer import LocalTensor
from paddle_llm.checkpoint.saving import background
from paddle_llm.checkpoint.saving.background import BackgroundWriter, Outcome
from paddle_llm.checkpoint.saving.protocol import Content, Member, save_checkpoint, stage
from paddle_llm.core.durable_files import operations_passed_to
from tests.checkpoint import faulty_writer
from tests.helpers.processes import is_running, wait_until

ROOT = Path(__file__).parents[2]


def alone(value: Any) -> list[Any]:
    """Return the value of every rank of a job of one rank."""
    return [value]


def tensors(seed: int) -> dict[str, LocalTensor]:
    random = np.random.default_rng(seed)
    found = {f"weights/{name}": random.standard_normal(shape, np.float32) for name, shape in (("a", (7, 5)), ("b", ()))}
    found["moment1/a"] = random.integers(0, 2**16, (7, 5), np.uint16)
    found["state/flags"] = np.array([True, False, True])
    return {key: LocalTensor.of(values) for key, values in found.items()}


def content(output: Path, step: int, keep: int | None = None) -> Content:
    member = Member(rank=0, disk=0, first_on_disk=True, shares_disk=True)
    staged, final = output / f".saving-{step}", output / f"checkpoint-{step}"
    manifest = Manifest(step, {"data": 1}, 8, {"model": {"size": 5}}, versions={"paddle_llm": "0"})
    return Content(staged, final, member, {"seed": 3}, {"step": step}, manifest, keep)


def staged(output: Path, step: int, keep: int | None = None) -> Content:
    made = content(output, step, keep)
    stage(made.staged, made.member, alone, lambda folder: None, None)
    return made


def save_in_background(output: Path, step: int) -> Outcome:
    """Save a checkpoint and end the process."""
    writer = BackgroundWriter(0)
    try:
        filled = writer.fill(tensors(step))
        made = staged(output, step)
        writer.start(alone)
        writer.submit(filled, made)
        return writer.wait()
    finally:
        writer.kill()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_process_imports_neither_paddle_nor_its_libraries():
    code = "import sys, paddle_llm.checkpoint.saving.process; print([m for m in ('paddle', 'paddlenlp', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_files_are_those_of_a_save_in_the_rank(tmp_path):
    outcome = save_in_background(tmp_path / "background", 10)
    nbytes = save_checkpoint(staged(tmp_path / "rank", 10), tensors(10), alone)
    one, other = (files_of(tmp_path / name / "checkpoint-10") for name in ("background", "rank"))
    assert one == other and outcome.problem is None and outcome.nbytes == nbytes > 0
    assert problem_of(tmp_path / "background" / "checkpoint-10", "full") is None


def test_a_save_that_begins_during_another_uses_the_second_buffer(tmp_path, monkeypatch):
    gate = tmp_path / "gate"
    for name, value in faulty_writer.variables(step=10, operation="create", action="wait", until=str(gate)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(background, "COMMAND", faulty_writer.COMMAND)
    writer = BackgroundWriter(0)
    try:
        writer.start(alone)
        for step in (10, 20, 30):
            filled = writer.fill(tensors(step))
            assert filled.buffer == (1 if step == 20 else 0)
            if step == 20:  # the first save has not written anything yet
                assert writer.is_busy and not writer.has_ended()
                gate.touch()
            if writer.is_busy:
                assert writer.wait().problem is None
            writer.submit(filled, staged(tmp_path, step, keep=2))
        assert writer.wait().problem is None
        writer.close()
    finally:
        writer.kill()
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == ["checkpoint-20", "checkpoint-30"]
    for step in (20, 30):
        with Reader(tmp_path / f"checkpoint-{step}") as reader:
            for key, one in tensors(step).items():
                assert np.array_equal(reader.tensor(key), one.read())


def test_the_memory_is_freed_with_the_writer():
    def open_memory() -> int:
        return sum(
            os.readlink(path).startswith("/memfd:checkpoint")
            for path in Path("/proc/self/fd").iterdir()
            if path.is_symlink()
        )

    before = open_memory()
    writer = BackgroundWriter(0)
    writer.fill(tensors(1))
    assert open_memory() > before
    del writer
    gc.collect()
    assert open_memory() == before


def number_of_operations(output: Path) -> int:
    """Return the number of operations on the files of a save, up to the rename."""
    passed: list[str] = []
    made = staged(output, 20)
    with operations_passed_to(lambda operation, path: passed.append(operation)):
        save_checkpoint(made, tensors(20), alone)
    return passed.index("rename") + 1


def test_a_killed_process_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "COMMAND", faulty_writer.COMMAND)
    last = number_of_operations(tmp_path / "count")
    assert last > 20
    for number in (1, 3, last // 2, last - 1, last, last + 1):
        output = tmp_path / str(number)
        save_checkpoint(staged(output, 10), tensors(10), alone)
        monkeypatch.setenv("FAULT", json.dumps({"step": 20, "at": number, "action": "kill"}))
        outcome = save_in_background(output, 20)
        newest, passed_over = newest_complete(output)
        assert newest is not None and not passed_over and problem_of(newest, "full") is None
        assert newest.name == ("checkpoint-10" if number <= last else "checkpoint-20")
        if number <= last:
            assert outcome.is_lost and outcome.is_own
            assert outcome.problem == "the process that writes checkpoints for rank 0 was killed by SIGKILL"


# A rank without Paddle, which waits for its process.
RANK = """
import sys
from pathlib import Path
from paddle_llm.checkpoint.saving import background
from tests.checkpoint import faulty_writer
from tests.checkpoint.test_background import save_in_background

background.COMMAND = faulty_writer.COMMAND
save_in_background(Path(sys.argv[1]), 20)
"""


@pytest.mark.parametrize("fault", [{"at": 2}, {"at": 12}, {"operation": "rename"}], ids=["early", "middle", "rename"])
def test_a_process_ends_with_its_rank(tmp_path, monkeypatch, fault):
    output, note = tmp_path / "output", tmp_path / "note"
    save_checkpoint(staged(output, 10), tensors(10), alone)
    monkeypatch.setenv("FAULT", json.dumps({"step": 20, "action": "kill rank", "note": str(note), **fault}))
    done = subprocess.run([sys.executable, "-c", RANK, str(output)], cwd=ROOT, check=False, timeout=120)
    assert done.returncode == -9
    pid = json.loads(note.read_text())["pid"]
    wait_until(lambda: not is_running(pid), 60, "the process that writes has ended")
    newest, passed_over = newest_complete(output)
    assert newest == output / "checkpoint-10" and not passed_over
    assert (output / ".saving-20").is_dir() and not (output / "checkpoint-20").exists()
