"""A save that is killed at any operation on files leaves the checkpoint before it valid and the newest; so does a rotation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from paddle_llm.checkpoint.folder import clear_staging, list_checkpoints
from paddle_llm.checkpoint.format.verify import problem_of

# Saves checkpoint 20 in a forked process for every number of operations, which a real SIGKILL ends at this operation. A file
# is written in blocks of 512 bytes here, so that it is also killed with a part of its content.
SCRIPT = """
import os, shutil, signal, sys
from pathlib import Path
from paddle_llm.core import durable_files
from tests.checkpoint.format import small

durable_files.BLOCK_BYTES = 512
output, number = Path(sys.argv[1]), 0
before = output / "before"
small.save(before, 10)
while True:
    number += 1
    run = output / f"run-{number}"
    shutil.copytree(before, run)
    child = os.fork()
    if child == 0:
        passed = 0
        def kill(operation, path):
            global passed
            passed += 1
            if passed == number:
                os.kill(os.getpid(), signal.SIGKILL)
        with durable_files.operations_passed_to(kill):
            small.save(run, 20, seed=1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(number, os.WTERMSIG(status) if os.WIFSIGNALED(status) else "saved", flush=True)
    if not os.WIFSIGNALED(status):
        break
"""


# The same for a rotation, which renames and removes.
ROTATION = """
import os, shutil, signal, sys
from pathlib import Path
from paddle_llm.checkpoint.folder import rotate
from tests.checkpoint.format import small

output, number = Path(sys.argv[1]), 0
before = output / "before"
for step in (10, 20, 30):
    small.save(before, step)
while True:
    number += 1
    run = output / f"run-{number}"
    shutil.copytree(before, run)
    child = os.fork()
    if child == 0:
        passed = 0
        def kill(event, arguments):
            global passed
            if event in ("os.rename", "os.remove", "os.rmdir"):
                passed += 1
            if passed == number and event != "os.kill":
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill)
        rotate(run, 1, None)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(number, os.WTERMSIG(status) if os.WIFSIGNALED(status) else "saved", flush=True)
    if not os.WIFSIGNALED(status):
        break
"""


def _ends(script: str, folder: Path) -> list[str]:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ends = [line.split()[1] for line in done.stdout.splitlines()]
    assert ends[-1] == "saved" and set(ends[:-1]) == {str(int(signal.SIGKILL))}
    return ends


def test_a_rotation_is_killed_at_every_removal(tmp_path):
    ends = _ends(ROTATION, tmp_path)
    assert len(ends) > 20
    for number in range(1, len(ends) + 1):
        run = tmp_path / f"run-{number}"
        found = list_checkpoints(run)
        assert found[-1][0] == 30 and all(problem_of(folder, "full") is None for _, folder in found), number
        clear_staging(run)  # as the next start does
        assert [path.name for path in sorted(run.iterdir())] == [folder.name for _, folder in found]
    assert [step for step, _ in found] == [30]


def test_a_save_is_killed_at_every_operation(tmp_path):
    ends = _ends(SCRIPT, tmp_path)
    assert len(ends) > 40
    last = len(ends)
    newest = []
    for number in range(1, last + 1):
        run = tmp_path / f"run-{number}"
        valid = [step for step, folder in list_checkpoints(run) if problem_of(folder, "full") is None]
        assert [step for step, _ in list_checkpoints(run)] == valid, number  # none is incomplete
        newest.append(valid[-1])
    # The new one appears with the rename, the operation before the last flush of its name.
    assert newest == [10] * (last - 2) + [20, 20]
