"""Answers of llama.cpp, for GGUF files.

in_processes.py runs it as `python llama_cpp_child.py QUESTION.json ANSWERS.npz`, with Python bindings of llama.cpp
(llama-cpp-python). Keys and values are cached in fp32. llama.cpp multiplies a matrix of 16 or 8 bits by activations that it
rounds to the type of the matrix, so that logits are compared for fp32 only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

_F32 = 0  # ggml's number of the type, also of a file with this type


def main(question_file: str, answers_file: str) -> None:
    """Answer a question; see in_processes.py."""
    question = json.loads(Path(question_file).read_text())
    longest = max(map(len, question["prompts"])) + question["new_tokens"]
    model = llama_cpp.Llama(
        str(Path(question["folder"]) / question["gguf"]),
        n_ctx=longest,
        n_batch=longest,
        logits_all=True,
        type_k=_F32,
        type_v=_F32,
        verbose=False,
    )
    answers = [continued(model, ids, question["new_tokens"]) for ids in question["prompts"]]
    kind = model.metadata["general.file_type"]
    other = {
        "engine": f"llama.cpp (llama-cpp-python {llama_cpp.__version__})",
        "text_ids": [model.tokenize(text.encode(), add_bos=True, special=False) for text in question["texts"]],
        "not_compared": "" if kind == str(_F32) else "llama.cpp rounds activations to the type of these weights",
    }
    tokens, logits = zip(*answers, strict=True)
    np.savez(answers_file, tokens=np.stack(tokens), logits=np.stack(logits), other=np.array(json.dumps(other)))


def continued(model: Any, ids: list[int], new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens [N] and the logits [N, V] from which they were chosen."""
    model.reset()
    model.eval(ids)
    tokens, logits_NV = [], []
    while True:
        logits_V = np.array(model.scores[model.n_tokens - 1])
        tokens.append(int(logits_V.argmax()))
        logits_NV.append(logits_V)
        if len(tokens) == new_tokens:
            return np.array(tokens), np.stack(logits_NV)
        model.eval(tokens[-1:])


if __name__ == "__main__":
    main(*sys.argv[1:])
