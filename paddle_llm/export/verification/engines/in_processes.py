"""Engines in separate processes.

torch and Paddle conflict over OpenMP in one process, and PaddleFormers cannot be installed together with PaddleNLP.

A child process runs a script of this folder by its path, with the engine's Python, and imports nothing of this
package. It gets a question as JSON and writes an .npz: `tokens` [P, N], `logits` [P, N, V] fp32 and `other`, JSON
with the other fields of `Answers`. Exit code 3 means that stderr describes a problem of the folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from paddle_llm.core.artifacts import GGUF
from paddle_llm.export.verification.engines.question import Answers, EngineEnded, EngineFailed, NotRun, Question

PADDLEFORMERS_PYTHON = "PADDLE_LLM_PADDLEFORMERS_PYTHON"
_HERE = Path(__file__).parent
_OUTPUT_LINES = 8  # last lines of output in a message
_WRONG_FOLDER = 3  # exit code of a child that found a problem of the folder
_TIMEOUT = 4 * 3600.0  # seconds; a model of 100 GB needs minutes to load and to answer 5 prompts


def answer_of_transformers(question: Question) -> Answers:
    """Run transformers on torch, from this environment.

    Raises:
        NotRun: If it is not installed.
        EngineFailed: If it does not load all weights.
        EngineEnded: If it ends without an answer.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotRun(f"{' and '.join(missing)} not installed. Install with: pip install 'paddle_llm[hf]'")
    if (question.folder / GGUF).is_file() and _scales_rope(question.folder):
        raise NotRun("transformers ignores scaled RoPE in GGUF files")
    return _ask(Path(sys.executable), "transformers_child.py", question)


def answer_of_llama_cpp(question: Question) -> Answers:
    """Run llama.cpp, through its Python bindings in this environment.

    Raises:
        NotRun: If they are not installed.
        EngineEnded: If it ends without an answer.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise NotRun("llama-cpp-python is not installed. Install with: pip install llama-cpp-python")
    return _ask(Path(sys.executable), "llama_cpp_child.py", question)


def _scales_rope(folder: Path) -> bool:
    """Return whether the network of a GGUF file scales its rotary positions."""
    from gguf import GGUFReader

    reader = GGUFReader(folder / GGUF)
    scales = any(".rope.scaling." in key for key in reader.fields)
    return scales or any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors)


def answer_of_paddleformers(question: Question, python: Path | None) -> Answers:
    """Run PaddleFormers, with which FastDeploy 2.x loads folders that it has no network for.

    Args:
        question: Prompts.
        python: Python of its environment.

    Raises:
        NotRun: If no environment is named.
        EngineEnded: If it ends without an answer.
    """
    if python is None:
        raise NotRun(
            "it needs a separate environment. Create one with launch/paddleformers_env.sh DIR, then use "
            f"--paddleformers_python DIR/bin/python (or {PADDLEFORMERS_PYTHON}=DIR/bin/python)."
        )
    # PaddleFormers writes a file into the folder that it loads.
    with _linked(question.folder) as folder:
        return _ask(python, "paddleformers_child.py", question, folder)


def has_paddleformers(python: Path) -> bool:
    """Return whether a program is a Python that has PaddleFormers installed, without importing it."""
    code = "import importlib.util as u, sys; sys.exit(0 if u.find_spec('paddleformers') else 1)"
    try:
        done = subprocess.run([str(python), "-c", code], env=_environment(), capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _ask(python: Path, script: str, question: Question, folder: Path | None = None) -> Answers:
    with tempfile.TemporaryDirectory(prefix="paddle_llm_verify_") as scratch:
        question_file, answers_file = Path(scratch) / "question.json", Path(scratch) / "answers.npz"
        question_file.write_text(
            json.dumps(
                {
                    "folder": str((folder or question.folder).resolve()),
                    "prompts": [[int(token) for token in prompt.ids] for prompt in question.prompts],
                    "texts": list(question.texts),
                    "new_tokens": question.new_tokens,
                    "gguf": GGUF if (question.folder / GGUF).is_file() else None,
                }
            )
        )
        _run([str(python), str(_HERE / script), str(question_file), str(answers_file)])
        if not answers_file.is_file():
            raise EngineEnded("it ended without an answer")
        with np.load(answers_file) as found:
            other = json.loads(str(found["other"]))
            return Answers(tokens=found["tokens"].tolist(), logits_NV=list(found["logits"]), **other)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, env=_environment(), capture_output=True, text=True, errors="replace", timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        output = error.stderr or b""  # bytes even with text=True (CPython 3.11)
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        raise EngineEnded(_with_output(f"it did not answer within {_TIMEOUT:.0f} s", text)) from None
    except OSError as error:
        raise EngineEnded(f"{command[0]} does not start: {error.strerror or error}") from None
    if done.returncode == _WRONG_FOLDER:
        raise EngineFailed(_with_output("", done.stderr))
    if done.returncode:
        raise EngineEnded(_with_output(_describe_exit(done.returncode), done.stderr))


def _describe_exit(code: int) -> str:
    """Describe how a process ended."""
    if code > 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"it was ended by {name}" + (" (possibly out of memory)" if -code == signal.SIGKILL else "")


def _with_output(reason: str, output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()][-_OUTPUT_LINES:]
    return "\n".join(
        [*([f"{reason}; its last output:" if lines else f"{reason}, without output"] if reason else []), *lines]
    )


def _environment() -> dict[str, str]:
    """Return the environment without variables that let a child download, use a GPU or act as a rank."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PADDLE_", "FLAGS_"))}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **offline, "CUDA_VISIBLE_DEVICES": "", "GLOG_minloglevel": "2", "PYTHONIOENCODING": "utf-8"}


@contextmanager
def _linked(folder: Path) -> Iterator[Path]:
    """Yield a folder of links to the files of another folder."""
    with tempfile.TemporaryDirectory(prefix="paddle_llm_verify_") as links:
        for file in folder.resolve().iterdir():
            (Path(links) / file.name).symlink_to(file)
        yield Path(links)
