"""What the data tests share: text, a tokenizer trained on it, corpora of known tokens."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.data.corpus.mmap_format import SizesFile, write_index
from paddle_llm.data.tokenizer import train_tokenizer

CHINESE = "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。白日依山盡，黃河入海流。欲窮千里目，更上一層樓。"

# Read once: torch, where a test imports it, puts functions of its own into `inspect`.
ENGLISH = [line for f in vars(inspect).values() for line in (inspect.getdoc(f) or "").splitlines() if line.strip()]


def english_and_chinese(count: int, seed: int = 0) -> list[str]:
    """Documents of real English (standard library docstrings) and Chinese, some with several lines."""
    draw = random.Random(seed)
    documents = []
    for i in range(count):
        if i % 4 == 3:
            start = draw.randrange(len(CHINESE) - 8)
            documents.append(CHINESE[start : start + draw.randint(4, 40)] + "\n" + CHINESE[:start])
        else:
            documents.append("\n".join(draw.choices(ENGLISH, k=draw.randint(1, 6))))
    return documents


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained tokenizer with 700 pieces."""
    folder = str(tmp_path_factory.mktemp("tokenizer") / "tok")
    train_tokenizer(english_and_chinese(300), folder, 700)
    return folder


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[[str, list[str]], Path]:
    """Writes documents as {"text": ...} lines."""

    def write(name: str, documents: list[str]) -> Path:
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps({"text": d}, ensure_ascii=False) + "\n" for d in documents), encoding="utf-8"
        )
        return path

    return write


def write_corpus(prefix: Path | str, documents: list[np.ndarray], dtype: str = "<u2") -> str:
    """A corpus of given ids, without a meta file, as another tool would have written it."""
    sizes = np.array([len(d) for d in documents], dtype="<i4")
    np.concatenate([*documents, np.empty(0)]).astype(dtype).tofile(f"{prefix}.bin")
    with open(f"{prefix}.spool", "wb+") as spool, open(f"{prefix}.idx", "wb") as index:
        blocks = SizesFile(spool)
        blocks.append(sizes)
        write_index(index, np.dtype(dtype), len(documents), blocks)
    Path(f"{prefix}.spool").unlink()
    return str(prefix)


def numbered_documents(count: int, first_id: int = 0, seed: int = 0, longest: int = 30) -> list[np.ndarray]:
    """Documents of 1 to `longest` tokens whose ids count up through all of them: each token names its place."""
    lengths = np.random.RandomState(seed).randint(1, longest + 1, count)
    ends = np.cumsum(lengths)
    return [np.arange(first_id + e - n, first_id + e) for n, e in zip(lengths, ends, strict=True)]
