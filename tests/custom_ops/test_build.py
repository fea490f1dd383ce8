"""The build of the operator: once for all processes that need it at the same time; reported and replaced if it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CUSTOM_OPS = Path(__file__).resolve().parents[2] / "custom_ops"
# A rank: it imports the module, calls the operator, and prints the result.
_RANK = """
import sys; sys.path.insert(0, {custom_ops!r})
import fused_ln, paddle
x, weight = paddle.ones([2, 8]), paddle.full([8], 3.0)
x.stop_gradient = False
y, invvar = fused_ln.fused_rms_norm(x, weight, 0.0)
y.sum().backward()
print("REASON", fused_ln.why_not("cpu"))
print("Y", float(y.sum()), float(x.grad.abs().max()))
"""


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PADDLE_", "CXX"))}
    return kept | {"GLOG_minloglevel": "2", "OMP_NUM_THREADS": "1"} | changes


def start(**changes: str) -> subprocess.Popen:
    code = _RANK.format(custom_ops=str(CUSTOM_OPS))
    command = [sys.executable, "-W", "ignore", "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(**changes), **pipes)


def finished(process: subprocess.Popen, timeout: float = 250) -> tuple[dict[str, str], str]:
    """Return ({"REASON": ..., "Y": ...}, stderr) of a process, which must succeed."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return dict(line.partition(" ")[::2] for line in out.splitlines() if line.startswith(("REASON", "Y"))), err


def folder_with(tmp_path: Path, **programs: str) -> str:
    """Return a folder for PATH with these programs, given as shell scripts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_a_missing_compiler_is_reported_and_the_norm_computed_without_it(tmp_path):
    result, err = finished(start(PATH=folder_with(tmp_path), PADDLE_EXTENSION_DIR=str(tmp_path / "cache")))
    assert result["REASON"] == "no C++ compiler: g++ is not on the PATH (install it, or set CXX)"
    assert result["Y"] == "48.0 0.0"
    lines = [line for line in err.splitlines() if "RMSNorm on the cpu" in line]
    assert (
        len(lines) == 1 and "RMSNorm on the cpu: Paddle's plain operations" in lines[0] and result["REASON"] in lines[0]
    )


def test_a_failing_compiler_is_called_once(tmp_path):
    """One of three ranks compiles. A later start tries again."""
    count = tmp_path / "count"
    path = folder_with(
        tmp_path, **{"g++": f"echo x >> {count}; sleep 1; echo 'x.cpp:1: error: no such type' >&2; exit 1"}
    )
    settings = {"PATH": f"{path}:/usr/bin:/bin", "PADDLE_EXTENSION_DIR": str(tmp_path / "cache")}
    ranks = [finished(rank)[0] for rank in [start(**settings) for _ in range(3)]]
    (note,) = (tmp_path / "cache").rglob("*.failed")
    assert note.read_text() == "the kernels could not be compiled: x.cpp:1: error: no such type"
    for rank in ranks:
        assert rank["REASON"].startswith(note.read_text()) and rank["Y"] == "48.0 0.0"
    # The ranks that waited also report how to try again.
    assert sum(f"to try again at once, delete {note}" in rank["REASON"] for rank in ranks) == 2
    tried = len(count.read_text().split())
    assert tried == 4  # the kernels, in parallel
    os.utime(note, (0, 0))
    finished(start(**settings))
    assert len(count.read_text().split()) == 2 * tried
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_the_compiler_may_consist_of_several_words(tmp_path):
    """For example CXX="ccache g++"."""
    path = folder_with(tmp_path, **{"wrap": 'test "$1" = g++ && echo "y.cpp:2: error: wrapped" >&2; exit 1'})
    settings = {"PATH": f"{path}:/usr/bin:/bin", "CXX": "wrap g++", "PADDLE_EXTENSION_DIR": str(tmp_path / "cache")}
    assert "y.cpp:2: error: wrapped" in finished(start(**settings))[0]["REASON"]
    assert (
        finished(start(**settings | {"CXX": "none g++"}))[0]["REASON"]
        == "no C++ compiler: none is not on the PATH (install it, or set CXX)"
    )


def test_a_cache_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    result, _ = finished(start(PADDLE_EXTENSION_DIR=str(tmp_path / "file")))
    assert "set PADDLE_EXTENSION_DIR" in result["REASON"] and result["Y"] == "48.0 0.0"


def test_a_broken_library_is_reported(tmp_path, own_operator):
    from fused_ln import binding

    built = binding.library()
    folder = tmp_path / "rms_norm" / built.parent.name
    folder.mkdir(parents=True)
    shutil.copy(built.parent / "facts.json", folder)
    (folder / built.name).write_text("no library")
    result, _ = finished(start(PADDLE_EXTENSION_DIR=str(tmp_path)))
    assert "it cannot be loaded" in result["REASON"] and result["Y"] == "48.0 0.0"


def test_a_paddle_that_cannot_be_imported_is_reported_at_installation(tmp_path):
    (tmp_path / "paddle").mkdir()
    (tmp_path / "paddle" / "__init__.py").write_text("raise OSError('libcudart.so.13: not found')")
    code = "import installation; print(installation._why_no_paddle())"
    settings = environment(PYTHONPATH=f"{tmp_path}:{CUSTOM_OPS}")
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True)
    assert done.stdout == "Paddle is installed but cannot be imported (OSError: libcudart.so.13: not found)\n", (
        done.stderr
    )


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH: the binding's CUDA part is not compiled")
def test_the_binding_compiles_for_cuda(own_operator):
    """It is compiled with the headers of the installed Paddle, which a CPU build also has."""
    import paddle
    from fused_ln import binding

    include = Path(paddle.sysconfig.get_include())
    flags = [*binding._FLAGS.split(), "-DPADDLE_WITH_CUDA", f"-I{include}", f"-I{include / 'third_party'}"]
    flags += binding.cuda_includes(shutil.which("nvcc"))
    source = CUSTOM_OPS / "csrc" / "paddle_rms_norm.cc"
    done = subprocess.run(["g++", *flags, "-fsyntax-only", str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_eight_processes_at_the_same_time_build_once(tmp_path):
    count = tmp_path / "count"
    path = folder_with(tmp_path, **{"g++": f'echo x >> {count}; exec {shutil.which("g++")} "$@"'})
    settings = {"PATH": f"{path}:/usr/bin:/bin", "PADDLE_EXTENSION_DIR": str(tmp_path / "cache")}
    ranks = [start(PADDLE_TRAINER_ID=str(rank), **settings) for rank in range(8)]
    outputs = [finished(rank) for rank in ranks]
    assert [result for result, _ in outputs] == [{"REASON": "", "Y": "48.0 0.0"}] * 8
    # Four kernels, their library, and the binding.
    assert len(count.read_text().split()) == 6
    assert len(list((tmp_path / "cache").rglob("*paddle.so"))) == 1
    assert sum("RMSNorm on the cpu: operator of fused_ln" in err for _, err in outputs) == 1, "only rank 0 reports it"
