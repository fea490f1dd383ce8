"""Texts and corpora for tests: real documents, token files of known ids, and a corpus built with the commands."""

from __future__ import annotations

import importlib.util
import inspect
import json
import random
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from paddle_llm.data.corpus.mmap_format import SizesFile, write_index
from tests.helpers.models.tiny import write_llama

VOCABULARY = 400
CHINESE = "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。白日依山盡，黃河入海流。欲窮千里目，更上一層樓。"


def _docstrings() -> list[str]:
    """Return the lines of the docstrings in a new copy of the module `inspect`: importing torch changes the shared one."""
    spec = importlib.util.find_spec("inspect")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [line for f in vars(module).values() for line in (inspect.getdoc(f) or "").splitlines() if line.strip()]


ENGLISH = _docstrings()


def english_and_chinese(count: int, seed: int = 0) -> list[str]:
    """Return documents of English (docstrings of the standard library) and Chinese, some with several lines."""
    draw = random.Random(seed)
    documents = []
    for i in range(count):
        if i % 4 == 3:
            start = draw.randrange(len(CHINESE) - 8)
            documents.append(CHINESE[start : start + draw.randint(4, 40)] + "\n" + CHINESE[:start])
        else:
            documents.append("\n".join(draw.choices(ENGLISH, k=draw.randint(1, 6))))
    return documents


def write_corpus(prefix: Path | str, documents: list[np.ndarray], dtype: str = "<u2") -> str:
    """Write a corpus of the given token ids without a meta file, as another tool would have written it."""
    sizes = np.array([len(d) for d in documents], dtype="<i4")
    np.concatenate([*documents, np.empty(0)]).astype(dtype).tofile(f"{prefix}.bin")
    with open(f"{prefix}.spool", "wb+") as spool, open(f"{prefix}.idx", "wb") as index:
        blocks = SizesFile(spool)
        blocks.append(sizes)
        write_index(index, np.dtype(dtype), len(documents), blocks)
    Path(f"{prefix}.spool").unlink()
    return str(prefix)


def numbered_documents(count: int, first_id: int = 0, seed: int = 0, longest: int = 30) -> list[np.ndarray]:
    """Return documents of 1 to `longest` tokens; ids count up across documents, so each token gives its position."""
    lengths = np.random.RandomState(seed).randint(1, longest + 1, count)
    ends = np.cumsum(lengths)
    return [np.arange(first_id + e - n, first_id + e) for n, e in zip(lengths, ends, strict=True)]


def make_corpus(folder: Path) -> Path:
    """Build `folder`/{text.jsonl, tokenizer, data/topics.*, llama} with the commands a user runs; return `folder`."""
    with (folder / "text.jsonl").open("w") as file:
        for name in sorted(topics)[:60]:
            file.write(json.dumps({"text": topics[name]}) + "\n")
    text, tokenizer = str(folder / "text.jsonl"), str(folder / "tokenizer")
    run_command("tokenizer", "train", "--input", text, "--output_dir", tokenizer, "--vocab_size", str(VOCABULARY))
    prefix = str(folder / "data/topics")
    run_command("data", "build", "--input", text, "--tokenizer", tokenizer, "--output_prefix", prefix, "--workers", "2")
    write_llama(folder / "llama", vocab_size=VOCABULARY, num_key_value_heads=2)
    return folder


def run_command(*arguments: str) -> str:
    """Run `paddle-llm ARGUMENTS` and return its stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "paddle_llm.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
