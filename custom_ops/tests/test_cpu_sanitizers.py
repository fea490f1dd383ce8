"""The CPU kernels under AddressSanitizer and UBSan, and cross-compiled for arm64 if the compiler is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import rms_norm_native as native

from tests.helpers.skips import needs

FUZZ = Path(__file__).with_name("fuzz_cpu.cpp")
# At -O1 and above the intrinsics compile for minutes.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O0", "-Wall", "-Wextra", "-Werror"]
# UBSan triples the time to compile the files with intrinsics: the fast test has it for the other files.
ADDRESS_ONLY = "-fno-sanitize=undefined"


def compile_fuzz(compiler: str, target: Path, flags: list[str], sources: list[Path], intrinsics: str = "") -> None:
    """Compile the fuzz program; `intrinsics` is a further flag for the files of AVX2 and AVX-512."""
    jobs, objects = [], []
    for source in [FUZZ, *sources]:
        objects.append(str(target.with_name(f"{target.name}_{source.stem}.o")))
        extra = [intrinsics] if intrinsics and "avx" in source.stem else []
        command = [compiler, *native.CPU_FLAGS, *flags, *extra, "-c", str(source), "-o", objects[-1]]
        jobs.append(subprocess.Popen(command))
    assert not any([job.wait() for job in jobs])
    subprocess.run([compiler, *native.CPU_FLAGS, *flags, *objects, "-o", str(target)], check=True)


def run(program: Path, trials: int) -> subprocess.CompletedProcess:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([str(program), str(trials)], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("intrinsics", [ADDRESS_ONLY, pytest.param("", marks=pytest.mark.slow)])
def test_under_sanitizers(tmp_path, intrinsics):
    program = tmp_path / "fuzz"
    compile_fuzz("g++", program, SANITIZERS, native.CPU_SOURCES, intrinsics)
    done = run(program, 100)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout == "100 trials, 0 failures\n"


@pytest.mark.slow
def test_the_sanitizer_sees_one_element_too_far(tmp_path):
    """The fuzz test fails if a kernel reads one element after the row."""
    broken = tmp_path / "csrc"
    shutil.copytree(native.CSRC, broken)
    rows = broken / "rms_norm_cpu_rows.h"
    text, right = rows.read_text(), "if (i < hidden) do_this(i, hidden - i);"
    assert text.count(right) == 1
    rows.write_text(text.replace(right, "if (i < hidden) do_this(i, hidden - i + 1);"))
    program = tmp_path / "fuzz"
    compile_fuzz("g++", program, SANITIZERS, [broken / source.name for source in native.CPU_SOURCES])
    done = run(program, 100)
    assert done.returncode != 0 and "AddressSanitizer" in done.stderr


def test_compiles_for_arm64(tmp_path):
    compiler = shutil.which("aarch64-linux-gnu-g++")
    needs(
        "the arm64 compiler and emulator", compiler is not None, "aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)"
    )
    program = tmp_path / "fuzz"
    compile_fuzz(compiler, program, ["-O1", "-Wall", "-Wextra", "-Werror", "-static"], native.CPU_SOURCES)
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    needs("the arm64 compiler and emulator", emulator is not None, "compiled; qemu-aarch64 (Debian: qemu-user) runs it")
    done = subprocess.run([emulator, str(program), "60"], capture_output=True, text=True, check=False)
    assert done.stdout == "60 trials, 0 failures\n", done.stderr[-2000:]
