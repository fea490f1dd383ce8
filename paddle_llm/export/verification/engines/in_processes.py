"""Engines in processes of their own: torch beside paddle in one process clashes over OpenMP, and PaddleFormers does not
install beside PaddleNLP.

A child is a script of this folder, run by the path with the engine's own Python: it imports nothing of this package. It is
given a question as JSON, and leaves an .npz: `tokens` [P, N], `logits` [P, N, V] fp32 and `heard`, JSON with what else it
has found. Exit code 3: it says on stderr what is wrong with the folder.
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

from paddle_llm.export.verification.engines.question import Answers, EngineEnded, EngineFailed, NotRun, Question

PADDLEFORMERS_PYTHON = "PADDLE_LLM_PADDLEFORMERS_PYTHON"
_HERE = Path(__file__).parent
_LAST_WORDS = 8  # lines
_SAYS_WHAT_IS_WRONG = 3
_PATIENCE = 4 * 3600.0  # seconds; a model of 100 GB is read in minutes, and answers 5 prompts in some more


def answer_of_transformers(question: Question) -> Answers:
    """transformers on torch, of this environment.

    Raises:
        NotRun: not installed.
        EngineFailed: it has not found the weights as they must be.
        EngineEnded: before it had answered.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotRun(f"{' and '.join(missing)} not installed here: pip install 'paddle_llm[hf]'")
    return _ask(Path(sys.executable), "transformers_child.py", question)


def answer_of_paddleformers(question: Question, python: Path | None) -> Answers:
    """PaddleFormers, which FastDeploy 2.x loads a folder with where it has no network of its own.

    Args:
        python: of its environment.

    Raises:
        NotRun: no such environment is named.
        EngineEnded: before it had answered.
    """
    if python is None:
        raise NotRun(
            "it needs an environment of its own: launch/paddleformers_env.sh DIR makes one, then "
            f"--paddleformers_python DIR/bin/python (or {PADDLEFORMERS_PYTHON}=DIR/bin/python)"
        )
    # PaddleFormers writes a file of its own into the folder that it loads.
    with _linked(question.folder) as folder:
        return _ask(python, "paddleformers_child.py", question, folder)


def has_paddleformers(python: Path) -> bool:
    """Whether a program is a Python in whose environment PaddleFormers is; without importing it."""
    looked = "import importlib.util as u, sys; sys.exit(0 if u.find_spec('paddleformers') else 1)"
    try:
        done = subprocess.run([str(python), "-c", looked], env=_environment(), capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _ask(python: Path, script: str, question: Question, folder: Path | None = None) -> Answers:
    with tempfile.TemporaryDirectory(prefix="paddle_llm_verify_") as scratch:
        asked, heard = Path(scratch) / "question.json", Path(scratch) / "answers.npz"
        asked.write_text(
            json.dumps(
                {
                    "folder": str((folder or question.folder).resolve()),
                    "prompts": [[int(token) for token in prompt.ids] for prompt in question.prompts],
                    "texts": list(question.texts),
                    "new_tokens": question.new_tokens,
                }
            )
        )
        _run([str(python), str(_HERE / script), str(asked), str(heard)])
        if not heard.is_file():
            raise EngineEnded("it ended without an answer")
        with np.load(heard) as found:
            more = json.loads(str(found["heard"]))
            return Answers(tokens=found["tokens"].tolist(), logits_NV=list(found["logits"]), **more)


def _run(words: list[str]) -> None:
    try:
        done = subprocess.run(
            words, env=_environment(), capture_output=True, text=True, errors="replace", timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        said = error.stderr or b""  # bytes, whatever is asked for (CPython 3.11)
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise EngineEnded(_with_last_words(f"it had not answered after {_PATIENCE:.0f} s", text)) from None
    except OSError as error:
        raise EngineEnded(f"{words[0]} does not start: {error.strerror or error}") from None
    if done.returncode == _SAYS_WHAT_IS_WRONG:
        raise EngineFailed(_with_last_words("", done.stderr))
    if done.returncode:
        raise EngineEnded(_with_last_words(_how_it_ended(done.returncode), done.stderr))


def _how_it_ended(code: int) -> str:
    """Of a process, by its exit code."""
    if code > 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"it was ended by {name}" + (" (as when the memory is full)" if -code == signal.SIGKILL else "")


def _with_last_words(how: str, said: str) -> str:
    words = [line for line in said.splitlines() if line.strip()][-_LAST_WORDS:]
    return "\n".join([*([f"{how}; its last words:" if words else f"{how}, without a word"] if how else []), *words])


def _environment() -> dict[str, str]:
    """This process's, without what would make a child download, use a GPU or think that it is a rank of a job."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PADDLE_", "FLAGS_"))}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **offline, "CUDA_VISIBLE_DEVICES": "", "GLOG_minloglevel": "2", "PYTHONIOENCODING": "utf-8"}


@contextmanager
def _linked(folder: Path) -> Iterator[Path]:
    """A folder of links to the files of another."""
    with tempfile.TemporaryDirectory(prefix="paddle_llm_verify_") as links:
        for file in folder.resolve().iterdir():
            (Path(links) / file.name).symlink_to(file)
        yield Path(links)
