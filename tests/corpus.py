"""A small real corpus with its tokenizer and a tiny LLaMA, made by the commands that a user types."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

from tests.tiny import write_llama

VOCABULARY = 400


def make_corpus(folder: Path) -> Path:
    """`folder`/{text.jsonl, tokenizer, data/topics.*, llama}; returns `folder`."""
    with (folder / "text.jsonl").open("w") as file:
        for name in sorted(topics)[:60]:
            file.write(json.dumps({"text": topics[name]}) + "\n")
    text, tokenizer = str(folder / "text.jsonl"), str(folder / "tokenizer")
    command_line("tokenizer", "train", "--input", text, "--output_dir", tokenizer, "--vocab_size", str(VOCABULARY))
    prefix = str(folder / "data/topics")
    command_line(
        "data", "build", "--input", text, "--tokenizer", tokenizer, "--output_prefix", prefix, "--workers", "2"
    )
    write_llama(folder / "llama", vocab_size=VOCABULARY, num_key_value_heads=2)
    return folder


def command_line(*words: str) -> str:
    """Run `paddle-llm WORDS`; returns its stdout."""
    done = subprocess.run([sys.executable, "-m", "paddle_llm.cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
