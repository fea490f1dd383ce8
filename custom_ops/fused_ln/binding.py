"""Finds the operator's library, or builds it once: kernels that do not depend on Paddle, and a thin binding to Paddle.

`pip install .` puts the library of the kernels into `lib/`. If Paddle can be imported during the installation
(`--no-build-isolation`, `python setup.py install`), the binding is built, too, in a folder whose name is a digest of
everything that it depends on. Otherwise the binding is built at first use in a cache: $PADDLE_EXTENSION_DIR (Paddle's
own variable for compiled extensions), or ~/.cache/paddle_llm/rms_norm. The file `facts.json` beside each binding lists
the GPUs that it supports, or the reason why it supports none.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
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
# In the source tree the kernels are one folder up; in an installation they are in this folder.
_SOURCES = _HERE if (_HERE / "csrc").is_dir() else _HERE.parent
SHIPPED = _HERE / "lib"
LIBRARY = "pllm_rms_norm_paddle.so"
KERNELS = "librms_norm_cpu.so"
_CUDA_KERNELS = "librms_norm_cuda.so"
_FACTS = "facts.json"
_RETRY_AFTER = 60.0  # seconds after a failure, so that the ranks of a job do not all repeat the build
# As in Paddle's cpp_extension, which is not used: it takes seconds to import and prints about ccache.
_FLAGS = "-std=c++17 -O2 -fPIC -w -fvisibility=hidden -DPADDLE_WITH_CUSTOM_KERNEL -DPADDLE_NO_PYTHON -D_GLIBCXX_USE_CXX11_ABI=1"


class BuildError(Exception):
    """The library does not exist and cannot be built. The message is one line with the reason."""


def built() -> Path | None:
    """Return the binding for this Paddle and this GPU; None if it has not been built."""
    name, gpu = key(), _gpu()
    folders = (SHIPPED / name, _cache_folder() / _variant(name, gpu))
    return next((folder / LIBRARY for folder in folders if _serves(folder, gpu)), None)


def library(say: Callable[[str], None] = print) -> Path:
    """Return the binding for this Paddle and this GPU, and build it if it does not exist.

    If several processes need it, one builds and the others wait. If the build fails, it fails in all of them.

    Args:
        say: Function that prints a message.

    Raises:
        BuildError: If there is no compiler, the cache cannot be written, or the compilation fails.
    """
    ready = built()
    if ready is not None:
        return ready
    name = _variant(key(), _gpu())
    cache = _cache()
    _compiler()
    with _locked(cache / f"{name}.lock"):
        ready = built()
        if ready is not None:
            return ready
        target, failure = cache / name / LIBRARY, cache / f"{name}.failed"
        age = time.time() - failure.stat().st_mtime if failure.is_file() else _RETRY_AFTER
        if age < _RETRY_AFTER:
            raise BuildError(f"{failure.read_text()} (tried {age:.0f} s ago; to try again at once, delete {failure})")
        say(f"building the fused RMSNorm for this Paddle, once (about 20 s), in {target.parent}")
        try:
            work = cache / f"{name}.work"
            shutil.rmtree(work, ignore_errors=True)  # left by a killed process
            build(work)
            shutil.rmtree(target.parent, ignore_errors=True)
            work.rename(target.parent)
        except BuildError as error:
            failure.write_text(str(error))
            raise
        failure.unlink(missing_ok=True)
        return target


def build(folder: Path) -> None:
    """Build the binding in a folder, beside the kernels (copied from `lib/` if the installation has them).

    If the CUDA part fails, the binding supports the CPU only, and facts.json contains the reason.

    Args:
        folder: Folder of the binding; it is created.

    Raises:
        BuildError: If there is no compiler, or the compilation for the CPU fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (SHIPPED / KERNELS).is_file():
        shutil.copy2(SHIPPED / KERNELS, folder)
    else:
        build_kernels(folder)
    nvcc = _nvcc()
    facts = {"nvcc": _identity(nvcc), "architectures": [], "no_cuda": ""}
    try:
        if nvcc is None:
            name = os.environ.get("NVCC") or "nvcc"
            raise BuildError(f"{name} was not found (set NVCC, or put nvcc on the PATH)")
        facts["architectures"] = _build_cuda(folder, nvcc)
        _bind(folder, nvcc)
    except (BuildError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        facts |= {"architectures": [], "no_cuda": _first_error(str(error))}
        _bind(folder)
    (folder / _FACTS).write_text(json.dumps(facts, indent=1) + "\n")


def _bind(folder: Path, nvcc: str | None = None) -> None:
    """Compile the binding and link it with the kernels in `folder`; with the CUDA part if nvcc is given."""
    import paddle

    include, paddle_folder = Path(paddle.sysconfig.get_include()), Path(paddle.__file__).parent
    flags = [*_FLAGS.split(), f"-I{include}", f"-I{include / 'third_party'}", f"-I{_SOURCES / 'csrc'}"]
    libraries = [f"-L{folder}", f"-l:{KERNELS}"]  # found beside the binding through $ORIGIN, also after it is moved
    if nvcc is not None:
        libraries.append(f"-l:{_CUDA_KERNELS}")
        flags += ["-DPADDLE_WITH_CUDA", *cuda_includes(nvcc)]
    # Python loads Paddle's library with local symbols, so the binding is linked with it. Paddle's OpenMP precedes the
    # kernels' libgomp: both then share one pool of threads (a second pool hangs in a forked process).
    linked = [paddle_folder / "base" / "libpaddle.so", paddle_folder / "libs" / "libiomp5.so"]
    linked = [file for file in linked if file.is_file()]
    libraries.append("-Wl,--no-as-needed")
    for rpath in ("$ORIGIN", *(str(file.parent) for file in linked)):
        libraries += ["-Xlinker", "-rpath", "-Xlinker", rpath]
    libraries += map(str, linked)
    source = _SOURCES / "csrc" / "paddle_rms_norm.cc"
    _run([*_compiler(), *flags, "-shared", str(source), "-o", str(folder / LIBRARY), *libraries])


def build_kernels(folder: Path) -> None:
    """Build the library of the kernels, which does not depend on Paddle, in a folder.

    Raises:
        BuildError: If there is no compiler, or the compilation fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _compiler()
    with tempfile.TemporaryDirectory() as work:
        try:
            shutil.move(native().build_cpu(Path(work)), folder / KERNELS)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise BuildError(f"the kernels could not be compiled: {_first_error(str(error))}") from error


def native() -> ModuleType:
    """Load rms_norm_native.py, which compiles the kernels. It is beside this package or in it."""
    spec = importlib.util.spec_from_file_location("rms_norm_native", _SOURCES / "rms_norm_native.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def key() -> str:
    """Return a name that changes with everything that the library depends on: Paddle, sources, flags and processor.

    Tools and GPUs are not part of it, because a container image is built without them and used with them.
    """
    import paddle

    facts = [paddle.version.full_version, paddle.version.commit, str(paddle.version.cuda()), platform.machine(), _FLAGS]
    digest = hashlib.sha256(" ".join(facts).encode())
    sources = [path for path in (_SOURCES / "csrc").iterdir() if path.is_file()]
    for source in [Path(__file__), _SOURCES / "rms_norm_native.py", *sorted(sources)]:
        digest.update(source.read_bytes())
    return f"paddle{paddle.version.full_version}-{digest.hexdigest()[:16]}"


def _variant(name: str, gpu: str | None) -> str:
    """Return the name of a folder in the cache: one for each kind of GPU, because machines may share the cache."""
    return f"{name}-sm{gpu}" if gpu else f"{name}-cpu"


def _cache_folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("PADDLE_EXTENSION_DIR") or Path(caches) / "paddle_llm") / "rms_norm"


def _cache() -> Path:
    folder = _cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(
            f"the cache cannot be written: {error} (set PADDLE_EXTENSION_DIR to another folder)"
        ) from error
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file. The system releases it when the process ends for any reason."""
    try:
        file = open(path, "w")  # noqa: SIM115
    except OSError as error:
        raise BuildError(
            f"the cache cannot be written: {error} (set PADDLE_EXTENSION_DIR to another folder)"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compiler() -> list[str]:
    """Return the compiler's command, which may have several words: `ccache g++`."""
    command = list(native().compiler())
    if shutil.which(command[0]) is None:
        raise BuildError(f"no C++ compiler: {command[0]} is not on the PATH (install it, or set CXX)")
    return command


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{command[0]} failed: {_first_error(done.stderr)}")


def _first_error(output: str) -> str:
    lines = output.strip().splitlines() or ["no output"]
    return next((line for line in lines if "error" in line), lines[-1])


# ---- CUDA, if Paddle is a GPU build and nvcc exists ----


def why_no_cuda(path: Path) -> str:
    """Return why a library has no kernels for this GPU; "" if it has.

    Args:
        path: Path from `library`.
    """
    facts, gpu = json.loads((path.parent / _FACTS).read_text()), _gpu()
    if gpu is None:
        return "Paddle finds no GPU"
    if _covers(facts["architectures"], gpu):
        return ""
    if facts["architectures"]:
        return f"it was built for sm_{', sm_'.join(facts['architectures'])}, not for this GPU's sm_{gpu}"
    again = f" (to try again, delete {path.parent})" if facts["nvcc"] else ""
    return f"it was built without CUDA: {facts['no_cuda']}{again}"


def _serves(folder: Path, gpu: str | None) -> bool:
    """Return whether a library can be used: it has kernels for the GPU, or a new build would not have them either."""
    if not ((folder / LIBRARY).is_file() and (folder / _FACTS).is_file()):
        return False
    if gpu is None:
        return True
    facts, nvcc = json.loads((folder / _FACTS).read_text()), _nvcc()
    return _covers(facts["architectures"], gpu) or nvcc is None or _identity(nvcc) == facts["nvcc"]


def _covers(architectures: list[str], gpu: str) -> bool:
    """Return whether a GPU can run kernels that were compiled for some architectures.

    It runs those of its major version up to its minor version, and PTX (of the newest architecture) of older versions.
    """
    same = [each for each in architectures if each[:-1] == gpu[:-1]]
    return any(int(each) <= int(gpu) for each in same) or any(int(each) <= int(gpu) for each in architectures[-1:])


def _gpu() -> str | None:
    """Return the GPU's compute capability, such as "90" for 9.0; None if Paddle is a CPU build or finds no GPU."""
    import paddle

    if not paddle.is_compiled_with_cuda() or not paddle.device.cuda.device_count():
        return None
    major, minor = paddle.device.cuda.get_device_capability()
    return f"{major}{minor}"


def _nvcc() -> str | None:
    import paddle

    if not paddle.is_compiled_with_cuda():
        return None
    return shutil.which(os.environ.get("NVCC") or "nvcc")


def _identity(nvcc: str | None) -> str:
    """Return a text that changes when nvcc is replaced; "" without nvcc."""
    return f"{os.path.realpath(nvcc)} of {os.stat(nvcc).st_mtime_ns}" if nvcc else ""


def cuda_includes(nvcc: str) -> list[str]:
    """Return the compiler flags for the folders of nvcc's headers.

    nvcc reports them, because the program on the PATH may be a script that calls it.

    Raises:
        BuildError: If nvcc does not report them.
    """
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    top = re.search(r"^#\$ TOP=(.+)$", output, re.M)
    if top is None:
        raise BuildError(f"{nvcc} does not report the folder of its headers")
    include = Path(top[1]) / "include"
    return [f"-I{include}", f"-I{include / 'cccl'}"]  # CUDA 13 has thrust in cccl


def _build_cuda(folder: Path, nvcc: str) -> list[str]:
    """Compile the CUDA kernels and return the architectures.

    These are the GPU's alone, or all that nvcc supports if there is no GPU (when a container image is built) or nvcc
    does not support it.
    """
    known = list(native().cuda_architectures(nvcc))
    if not known:
        raise BuildError(f"{nvcc} supports none of the GPUs that the kernels are written for")
    gpu = _gpu()
    architectures = [gpu] if gpu in known else known
    native().build_cuda(folder, nvcc, architectures)
    return architectures
