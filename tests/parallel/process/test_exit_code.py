"""A rank ends with its own exit code, although a peer disconnects while it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# What is registered before Paddle is loaded comes when Paddle's C++ objects are gone: it closes the file descriptor and sleeps
# the seconds that the exit code says, which is 1. A group's store lives longer than Python, which the reference makes sure of.
SERVER = """
import ctypes, sys
libc = ctypes.CDLL(None)
for _ in range(10):
    libc.on_exit(libc.sleep, None)
libc.on_exit(libc.close, None)
from paddle.base import core
store = core.TCPStore("127.0.0.1", int(sys.argv[1]), True, 0, 30)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(store))
if sys.argv[2] == "ours":
    from paddle_llm.parallel.process.exit_code import keep_exit_code
    keep_exit_code()
print("it serves", flush=True)
sys.stdin.readline()
sys.exit(1)
"""


@pytest.mark.parametrize("end, codes", [("ours", {1}), ("paddle's", {-signal.SIGABRT, -signal.SIGSEGV})])
def test_a_peer_that_disconnects_late_does_not_change_the_exit_code(end, codes):
    """Without `keep_exit_code` a signal ends the process. If that fails, Paddle has fixed it, and exit_code.py can be removed."""
    from paddle.base import core

    from paddle_llm.parallel.gloo.rendezvous import free_port

    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port), end]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as server:
        assert server.stdout.readline() == "it serves\n"
        peer = core.TCPStore("127.0.0.1", port, False, 0, 30)
        peer.set("key", b"value")
        server.stdin.close()
        assert server.stdout.read() == ""  # until it is closed
        del peer
        assert server.wait(30) in codes


@pytest.mark.parametrize("ending, code", [("sys.exit(3)", 3), ("1 / 0", 1), ("", 0)])
def test_the_last_output_of_a_process_is_written(ending, code, tmp_path):
    script = (
        "import atexit, sys; from paddle_llm.parallel.process.exit_code import keep_exit_code; keep_exit_code()\n"
        f"atexit.register(print, 'the end'); print('a word'); {ending}"
    )
    with open(tmp_path / "log", "w") as log:  # not a terminal: written in blocks
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, stdout=log, stderr=subprocess.DEVNULL, check=False
        )
    assert done.returncode == code and (tmp_path / "log").read_text() == "a word\nthe end\n"
