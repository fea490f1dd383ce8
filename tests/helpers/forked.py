"""Runs scripts and modules like `python ...`, in a process forked from the server of the ranks, which has imported Paddle.

A new interpreter takes about four seconds of processor time to import Paddle and PaddleNLP. Tests of what a process
imports, of its threads and of how it starts need one; tests of what a command computes, writes and prints do not.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from paddle_llm.rehearse.ranks import SERVER_ENVIRONMENT, start_server


def run_forked(*words: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` in `cwd`, where WORDS are `-m MODULE ARGUMENTS` or `SCRIPT ARGUMENTS`.

    Raises:
        subprocess.TimeoutExpired: If it has not ended after `timeout` seconds.
    """
    start_server()
    with tempfile.TemporaryDirectory(prefix="forked-") as folder:
        environment = {**os.environ, **SERVER_ENVIRONMENT}
        arguments = (list(map(str, words)), str(cwd), environment, folder)
        process = multiprocessing.get_context("forkserver").Process(target=_run, args=arguments, daemon=False)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(words), timeout)
        out, err = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(list(words), process.exitcode, out, err)


def _run(words: list[str], cwd: str, environment: dict[str, str], folder: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the server
    for number, name in ((1, "stdout"), (2, "stderr")):
        with open(f"{folder}/{name}", "wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    code = _exit_code(words)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_code(words: list[str]) -> int:
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(os.path.abspath(words[0]), run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
