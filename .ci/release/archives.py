"""Checks of the built packages: the wheel and the sdist contain the files of the checkout, and the sdist builds the wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Pattern of a tracked file -> its name in the wheel. What no pattern matches is not in the wheel.
IN_WHEEL = [
    (r"paddle_llm/.*", r"\g<0>"),
    (r"configs/((pretrain|finetune|models)/.*\.json|schema\w*\.json)", r"paddle_llm/recipes/\1"),
    (r"custom_ops/csrc/.*", r"fused_ln/csrc/"),
    (r"custom_ops/(fused_ln/.*)", r"\1"),
    (r"custom_ops/(rms_norm_native\.py)", r"fused_ln/\1"),
]
IN_SDIST = re.compile(
    r"(paddle_llm|custom_ops|configs)/.*|setup\.py|pyproject\.toml|MANIFEST\.in|LICENSE|README(_zh)?\.md|CHANGELOG\.md|CITATION\.cff"
    r"|run_pretrain\.py|finetune_generation\.py"
)
# What the build adds.
BUILT_FOR_WHEEL = re.compile(r"fused_ln/lib/.+|paddle_llm-[^/]+\.dist-info/.+")
BUILT_FOR_SDIST = re.compile(r"PKG-INFO|setup\.cfg|paddle_llm\.egg-info/.+")
_SHOWN = 5


def tracked(root: Path) -> list[str]:
    """Return the files that git tracks, relative to the root."""
    done = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def expected_in_wheel(root: Path) -> dict[str, bytes]:
    """Return names and contents of the checkout's files in a wheel."""
    files = {}
    for name in tracked(root):
        for pattern, target in IN_WHEEL:
            found = re.fullmatch(pattern, name)
            if found:
                inside = found.expand(target)
                inside += name.rpartition("/")[2] if inside.endswith("/") else ""
                files[inside] = (root / name).read_bytes()
    return files


def read_wheel(wheel: Path) -> dict[str, bytes]:
    """Return names and contents of the files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def read_sdist(sdist: Path) -> dict[str, bytes]:
    """Return names, without the folder of the archive, and contents of the files of an sdist."""
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        return {member.name.split("/", 1)[1]: _content(archive, member) for member in members}


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file is not None else b""


def _compare(
    name: str, found: dict[str, bytes], expected: dict[str, bytes], may_add: Callable[[str], object]
) -> Iterator[str]:
    lists = {
        "lacks": sorted(set(expected) - set(found)),
        "has other contents in": sorted(file for file in expected if found.get(file, expected[file]) != expected[file]),
        "must not have": sorted(file for file in set(found) - set(expected) if not may_add(file)),
    }
    for what, files in lists.items():
        if files:
            more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
            yield f"{name} {what} {', '.join(files[:_SHOWN])}{more}. Build it again; if that does not help, change setup.py or MANIFEST.in."


def _metadata_problems(name: str, metadata: str, version: str) -> Iterator[str]:
    fields = dict(line.split(": ", 1) for line in metadata.split("\n\n")[0].splitlines() if ": " in line)
    for key, value in {"Name": "paddle_llm", "Version": version, "Description-Content-Type": "text/markdown"}.items():
        if fields.get(key) != value:
            yield f"{name}: {key} is {fields.get(key)}, not {value}."


def wheel_problems(root: Path, wheel: Path, version: str) -> Iterator[str]:
    """Yield problems of a wheel: files, kernels, metadata, the command."""
    found = read_wheel(wheel)
    yield from _compare(wheel.name, found, expected_in_wheel(root), BUILT_FOR_WHEEL.fullmatch)
    if not any(re.fullmatch(r"fused_ln/lib/.+\.so", name) for name in found):
        yield f"{wheel.name} has no built kernel (fused_ln/lib/*.so). Install a C++ compiler, and build it again."
    about = next((name.rpartition("/")[0] for name in found if name.endswith(".dist-info/METADATA")), "")
    yield from _metadata_problems(wheel.name, found.get(f"{about}/METADATA", b"").decode(), version)
    if b"paddle-llm = paddle_llm.cli.main:main" not in found.get(f"{about}/entry_points.txt", b""):
        yield f"{wheel.name} does not install the command paddle-llm."
    if not any(re.fullmatch(r"[^/]+\.dist-info/(licenses/)?LICENSE", name) for name in found):
        yield f"{wheel.name} has no LICENSE."


def sdist_problems(root: Path, sdist: Path, version: str) -> Iterator[str]:
    """Yield problems of an sdist: files and metadata."""
    found = read_sdist(sdist)
    expected = {name: (root / name).read_bytes() for name in tracked(root) if IN_SDIST.fullmatch(name)}
    yield from _compare(sdist.name, found, expected, BUILT_FOR_SDIST.fullmatch)
    yield from _metadata_problems(sdist.name, found.get("PKG-INFO", b"").decode(), version)


def rebuild_problems(sdist: Path, wheel: Path, *options: str) -> Iterator[str]:
    """Build a wheel from an sdist and yield where it differs from another wheel; compiled libraries may differ in their bytes.

    Args:
        sdist: Sdist to build.
        wheel: Wheel to compare with.
        options: Further options of `python -m build`.
    """
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (source,) = Path(folder).iterdir()
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", f"{folder}/dist", *options, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
            yield f"{sdist.name} does not build a wheel. The last lines of the build:\n{last}"
            return
        (built,) = Path(folder, "dist").glob("*.whl")
        yield from _compare(
            f"the wheel that {sdist.name} builds", _comparable(built), _comparable(wheel), lambda name: False
        )


def _comparable(wheel: Path) -> dict[str, bytes]:
    return {
        name: b"" if name.endswith((".so", ".dist-info/RECORD")) else content
        for name, content in read_wheel(wheel).items()
    }
