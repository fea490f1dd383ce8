"""The operator's library: where it lies, and how it is built once. Kernels free of Paddle, and a thin binding to Paddle.

`pip install .` puts the kernels' library into `lib/`; where Paddle can be seen at install (`--no-build-isolation`,
`python setup.py install`), the binding too, in a folder named by what it depends on. Else the binding is built at first use
into a cache: $PADDLE_EXTENSION_DIR (Paddle's own word for such a place), or ~/.cache/paddle_llm/rms_norm.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent
# In the source tree the kernels lie one folder up; installed, they lie here.
_SOURCES = _HERE if (_HERE / "csrc").is_dir() else _HERE.parent
SHIPPED = _HERE / "lib"
LIBRARY = "pllm_rms_norm_paddle.so"
KERNELS = "librms_norm_cpu.so"
_CUDA_KERNELS = "librms_norm_cuda.so"
_TRY_AGAIN = 60.0  # seconds after a failure: ranks of one job do not start in the same second
# Like Paddle's own cpp_extension, whose set-up module takes seconds to import and tells of ccache.
_FLAGS = "-std=c++17 -O2 -fPIC -w -fvisibility=hidden -DPADDLE_WITH_CUSTOM_KERNEL -DPADDLE_NO_PYTHON -D_GLIBCXX_USE_CXX11_ABI=1"


class BuildError(Exception):
    """There is no library and none could be built: why, in one line."""


def library(say: Callable[[str], None] = print) -> Path:
    """The binding for the Paddle that is imported here; built if it is not there yet.

    Of processes that ask at once, one builds and the others wait; if it fails, they fail with it.

    Raises:
        BuildError: no compiler, no place to write, or the compiler's own complaint.
    """
    name = key()
    if (SHIPPED / name / LIBRARY).is_file():
        return SHIPPED / name / LIBRARY
    cache = _cache()
    if (cache / name / LIBRARY).is_file():
        return cache / name / LIBRARY
    _compiler()
    with _locked(cache / f"{name}.lock"):
        made, failure = cache / name / LIBRARY, cache / f"{name}.failed"
        if made.is_file():
            return made
        if failure.is_file() and time.time() - failure.stat().st_mtime < _TRY_AGAIN:
            raise BuildError(failure.read_text())
        say(f"building the fused RMSNorm for this Paddle, once: {made.parent}")
        try:
            work = cache / f"{name}.work"
            shutil.rmtree(work, ignore_errors=True)  # of a process that was killed in the middle
            build(work)
            shutil.rmtree(made.parent, ignore_errors=True)
            work.rename(made.parent)
        except BuildError as error:
            failure.write_text(str(error))
            raise
        failure.unlink(missing_ok=True)
        return made


def build(folder: Path) -> None:
    """Builds the binding into `folder`, with the kernels beside it (those of `lib/`, if they were shipped).

    Raises:
        BuildError: as `library`.
    """
    import paddle

    folder.mkdir(parents=True, exist_ok=True)
    if (SHIPPED / KERNELS).is_file():
        shutil.copy2(SHIPPED / KERNELS, folder)
    else:
        build_kernels(folder)
    include = Path(paddle.sysconfig.get_include())
    flags = [*_FLAGS.split(), f"-I{include}", f"-I{include / 'third_party'}", f"-I{_SOURCES / 'csrc'}"]
    libraries = [f"-L{folder}", f"-l:{KERNELS}"]  # found beside the binding, wherever that goes
    nvcc = _nvcc()
    if nvcc is not None:
        _build_cuda(folder, nvcc)
        libraries.append(f"-l:{_CUDA_KERNELS}")
        flags += ["-DPADDLE_WITH_CUDA", *cuda_includes(nvcc)]
    # Paddle is loaded where a library that is loaded later does not look, so it is named.
    paddle_folder = Path(paddle.__file__).parent / "base"
    libraries += [f"-L{paddle_folder}", "-Wl,--no-as-needed", "-l:libpaddle.so", f"-Wl,-rpath,$ORIGIN:{paddle_folder}"]
    source = _SOURCES / "csrc" / "paddle_rms_norm.cc"
    _run([_compiler(), *flags, "-shared", str(source), "-o", str(folder / LIBRARY), *libraries])


def build_kernels(folder: Path) -> None:
    """Builds the kernels' library, which needs no Paddle, into `folder`.

    Raises:
        BuildError: no compiler, or its complaint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _compiler()
    with tempfile.TemporaryDirectory() as work:
        try:
            shutil.move(native().build_cpu(Path(work)), folder / KERNELS)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise BuildError(f"the kernels could not be compiled: {error}") from error


def native() -> ModuleType:
    """rms_norm_native.py: how the kernels are compiled."""
    spec = importlib.util.spec_from_file_location("rms_norm_native", _SOURCES / "rms_norm_native.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def key() -> str:
    """Names everything that the library depends on: Paddle, sources, flags, processor, the GPU's architecture."""
    import paddle

    nvcc = _nvcc()
    facts = [paddle.version.full_version, paddle.version.commit, _FLAGS, *native().CPU_FLAGS, platform.machine()]
    facts += [nvcc, *_architectures(nvcc)] if nvcc else ["no CUDA"]
    digest = hashlib.sha256(" ".join(facts).encode())
    for source in [_SOURCES / "rms_norm_native.py", *sorted((_SOURCES / "csrc").iterdir())]:
        digest.update(source.read_bytes())
    return f"paddle{paddle.version.full_version}-{digest.hexdigest()[:16]}"


def _cache() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get("PADDLE_EXTENSION_DIR") or Path(caches) / "paddle_llm") / "rms_norm"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"nowhere to build it: {error} (set PADDLE_EXTENSION_DIR to a folder)") from error
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time. The lock goes with its holder, however that ends."""
    try:
        file = open(path, "w")  # noqa: SIM115
    except OSError as error:
        raise BuildError(f"nowhere to build it: {error} (set PADDLE_EXTENSION_DIR to a folder)") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compiler() -> str:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise BuildError(f"no C++ compiler: {compiler} is not on the PATH")
    return compiler


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{command[0]} failed: {_first_error(done.stderr)}")


def _first_error(said: str) -> str:
    lines = said.strip().splitlines() or ["without a word"]
    return next((line for line in lines if "error" in line), lines[-1])


# ---- CUDA: where Paddle is a build for GPUs and nvcc is found.


def _nvcc() -> str | None:
    import paddle

    if not paddle.is_compiled_with_cuda():
        return None
    return os.environ.get("NVCC") or shutil.which("nvcc")


def cuda_includes(nvcc: str) -> list[str]:
    """-I for where this nvcc has its headers: it says so itself, since what is on the PATH may be a script that calls it."""
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    top = re.search(r"^#\$ TOP=(.+)$", said, re.M)
    if top is None:
        raise BuildError(f"{nvcc} does not say where its headers are")
    include = Path(top[1]) / "include"
    return [f"-I{include}", f"-I{include / 'cccl'}"]  # thrust, in CUDA 13 a folder further down


def _architectures(nvcc: str) -> list[str]:
    """The GPU's that is here; all of them where none is (an installation in a container's build)."""
    import paddle

    if paddle.device.cuda.device_count():
        major, minor = paddle.device.cuda.get_device_capability()
        return [f"{major}{minor}"]
    return list(native().cuda_architectures(nvcc))


def _build_cuda(folder: Path, nvcc: str) -> None:
    try:
        native().build_cuda(folder, nvcc, _architectures(nvcc))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise BuildError(f"the CUDA kernels could not be compiled: {_first_error(str(error))}") from error


def has_cuda() -> bool:
    """Whether the library that `library` gives has CUDA kernels."""
    return _nvcc() is not None
