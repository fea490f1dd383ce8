"""The operator's library: where it lies, and how it is built once. Kernels free of Paddle, and a thin binding to Paddle.

`pip install .` puts the kernels' library into `lib/`; where Paddle can be seen at install (`--no-build-isolation`,
`python setup.py install`), the binding too, in a folder named by what it depends on. Else the binding is built at first use
into a cache: $PADDLE_EXTENSION_DIR (Paddle's own word for such a place), or ~/.cache/paddle_llm/rms_norm. Beside each binding
lies `facts.json`: the GPUs that it is for, or why it is for none.
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
# In the source tree the kernels lie one folder up; installed, they lie here.
_SOURCES = _HERE if (_HERE / "csrc").is_dir() else _HERE.parent
SHIPPED = _HERE / "lib"
LIBRARY = "pllm_rms_norm_paddle.so"
KERNELS = "librms_norm_cpu.so"
_CUDA_KERNELS = "librms_norm_cuda.so"
_FACTS = "facts.json"
_TRY_AGAIN = 60.0  # seconds after a failure: ranks of one job do not start in the same second
# Like Paddle's own cpp_extension, whose set-up module takes seconds to import and tells of ccache.
_FLAGS = "-std=c++17 -O2 -fPIC -w -fvisibility=hidden -DPADDLE_WITH_CUSTOM_KERNEL -DPADDLE_NO_PYTHON -D_GLIBCXX_USE_CXX11_ABI=1"


class BuildError(Exception):
    """There is no library and none could be built: why, in one line."""


def built() -> Path | None:
    """The binding for the Paddle and the GPU that are here, if it is there already."""
    name, gpu = key(), _gpu()
    places = (SHIPPED / name, _cache_folder() / _variant(name, gpu))
    return next((folder / LIBRARY for folder in places if _serves(folder, gpu)), None)


def library(say: Callable[[str], None] = print) -> Path:
    """The same; built if it is not there yet.

    Of processes that ask at once, one builds and the others wait; if it fails, they fail with it.

    Raises:
        BuildError: no compiler, no place to write, or the compiler's own complaint.
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
        made, failure = cache / name / LIBRARY, cache / f"{name}.failed"
        age = time.time() - failure.stat().st_mtime if failure.is_file() else _TRY_AGAIN
        if age < _TRY_AGAIN:
            raise BuildError(f"{failure.read_text()} (tried {age:.0f} s ago; to try again at once, delete {failure})")
        say(f"building the fused RMSNorm for this Paddle, once (about 20 s): {made.parent}")
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

    What goes wrong with CUDA leaves a binding for the CPU, and its reason in facts.json.

    Raises:
        BuildError: as `library`.
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
            wanted = os.environ.get("NVCC") or "nvcc"
            raise BuildError(f"{wanted} was not found when it was built (set NVCC, or put nvcc on the PATH)")
        facts["architectures"] = _build_cuda(folder, nvcc)
        _bind(folder, nvcc)
    except (BuildError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        facts |= {"architectures": [], "no_cuda": _first_error(str(error))}
        _bind(folder)
    (folder / _FACTS).write_text(json.dumps(facts, indent=1) + "\n")


def _bind(folder: Path, nvcc: str | None = None) -> None:
    """Compiles the binding, with its CUDA part where there is an nvcc, against the kernels in `folder`."""
    import paddle

    include, paddle_folder = Path(paddle.sysconfig.get_include()), Path(paddle.__file__).parent
    flags = [*_FLAGS.split(), f"-I{include}", f"-I{include / 'third_party'}", f"-I{_SOURCES / 'csrc'}"]
    libraries = [f"-L{folder}", f"-l:{KERNELS}"]  # found beside the binding, wherever that goes
    if nvcc is not None:
        libraries.append(f"-l:{_CUDA_KERNELS}")
        flags += ["-DPADDLE_WITH_CUDA", *cuda_includes(nvcc)]
    # Paddle is loaded where a library that is loaded later does not look, so it is named. So is its OpenMP, ahead of the
    # kernels' libgomp: one pool of threads, which sleeps and forks as Paddle's own operators' (a second one hangs in a child).
    named = [paddle_folder / "base" / "libpaddle.so", paddle_folder / "libs" / "libiomp5.so"]
    named = [file for file in named if file.is_file()]
    libraries.append("-Wl,--no-as-needed")
    for folder_of_it in ("$ORIGIN", *(str(file.parent) for file in named)):
        libraries += ["-Xlinker", "-rpath", "-Xlinker", folder_of_it]
    libraries += map(str, named)
    source = _SOURCES / "csrc" / "paddle_rms_norm.cc"
    _run([*_compiler(), *flags, "-shared", str(source), "-o", str(folder / LIBRARY), *libraries])


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
            raise BuildError(f"the kernels could not be compiled: {_first_error(str(error))}") from error


def native() -> ModuleType:
    """rms_norm_native.py: how the kernels are compiled."""
    spec = importlib.util.spec_from_file_location("rms_norm_native", _SOURCES / "rms_norm_native.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def key() -> str:
    """Names what the library depends on wherever it runs: Paddle, sources, flags, processor. Not tools or GPUs: an image
    that is built where there are none is used where there are."""
    import paddle

    facts = [paddle.version.full_version, paddle.version.commit, str(paddle.version.cuda()), platform.machine(), _FLAGS]
    digest = hashlib.sha256(" ".join(facts).encode())
    sources = [path for path in (_SOURCES / "csrc").iterdir() if path.is_file()]
    for source in [Path(__file__), _SOURCES / "rms_norm_native.py", *sorted(sources)]:
        digest.update(source.read_bytes())
    return f"paddle{paddle.version.full_version}-{digest.hexdigest()[:16]}"


def _variant(name: str, gpu: str | None) -> str:
    """In the cache, which machines may share, there is one for each kind of GPU."""
    return f"{name}-sm{gpu}" if gpu else f"{name}-cpu"


def _cache_folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("PADDLE_EXTENSION_DIR") or Path(caches) / "paddle_llm") / "rms_norm"


def _cache() -> Path:
    folder = _cache_folder()
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


def _compiler() -> list[str]:
    """$CXX may be a command with words after it, "ccache g++"."""
    command = list(native().compiler())
    if shutil.which(command[0]) is None:
        raise BuildError(f"no C++ compiler: {command[0]} is not on the PATH")
    return command


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{command[0]} failed: {_first_error(done.stderr)}")


def _first_error(said: str) -> str:
    lines = said.strip().splitlines() or ["without a word"]
    return next((line for line in lines if "error" in line), lines[-1])


# ---- CUDA: where Paddle is a build for GPUs and nvcc is found.


def why_no_cuda(path: Path) -> str:
    """Why the library that `library` gave has no kernels for this GPU; "" where it has."""
    facts, gpu = json.loads((path.parent / _FACTS).read_text()), _gpu()
    if gpu is None:
        return "Paddle sees no GPU here"
    if _covers(facts["architectures"], gpu):
        return ""
    if facts["architectures"]:
        return f"it was built for sm_{', sm_'.join(facts['architectures'])}, not for this GPU's sm_{gpu}"
    again = f" (to try again, delete {path.parent})" if facts["nvcc"] else ""
    return f"no CUDA: {facts['no_cuda']}{again}"


def _serves(folder: Path, gpu: str | None) -> bool:
    """Whether this library will do: it has kernels for the GPU, or no better one could be built."""
    if not ((folder / LIBRARY).is_file() and (folder / _FACTS).is_file()):
        return False
    if gpu is None:
        return True
    facts, nvcc = json.loads((folder / _FACTS).read_text()), _nvcc()
    return _covers(facts["architectures"], gpu) or nvcc is None or _identity(nvcc) == facts["nvcc"]


def _covers(architectures: list[str], gpu: str) -> bool:
    """A GPU runs what was compiled for its major version up to its minor one, and from PTX (of the newest) what is older."""
    same = [each for each in architectures if each[:-1] == gpu[:-1]]
    return any(int(each) <= int(gpu) for each in same) or any(int(each) <= int(gpu) for each in architectures[-1:])


def _gpu() -> str | None:
    """ "90" of a GPU of compute capability 9.0; None where Paddle is for CPUs or sees no GPU."""
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
    """A newer or mended one is another."""
    return f"{os.path.realpath(nvcc)} of {os.stat(nvcc).st_mtime_ns}" if nvcc else ""


def cuda_includes(nvcc: str) -> list[str]:
    """-I for where this nvcc has its headers: it says so itself, since what is on the PATH may be a script that calls it."""
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    top = re.search(r"^#\$ TOP=(.+)$", said, re.M)
    if top is None:
        raise BuildError(f"{nvcc} does not say where its headers are")
    include = Path(top[1]) / "include"
    return [f"-I{include}", f"-I{include / 'cccl'}"]  # thrust, in CUDA 13 a folder further down


def _build_cuda(folder: Path, nvcc: str) -> list[str]:
    """Compiles the CUDA kernels for the GPU that is here; for all where none is (an installation in a container's build), or
    one that this nvcc does not know. Returns for which."""
    known = list(native().cuda_architectures(nvcc))
    if not known:
        raise BuildError(f"{nvcc} compiles for none of the GPUs that the kernels are for")
    gpu = _gpu()
    architectures = [gpu] if gpu in known else known
    native().build_cuda(folder, nvcc, architectures)
    return architectures
