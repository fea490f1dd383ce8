"""Answers of PaddleFormers. in_processes.py runs it as `python paddleformers_child.py QUESTION.json ANSWERS.npz`.

Fused RMSNorm and flash attention do not run on a CPU and are switched off. The whole text is recomputed for each
token, without a cache: the comparison concerns weights, names and configuration.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddleformers.transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def main(question_file: str, answers_file: str) -> None:
    """Answer a question; see in_processes.py."""
    question = json.loads(Path(question_file).read_text())
    folder = question["folder"]
    paddle.set_device("cpu")
    config = AutoConfig.from_pretrained(folder)
    config.fuse_rms_norm = False
    config._attn_implementation = "eager"
    # Its embedding returns zeros for the padding token, even in the middle of a text.
    padding, config.pad_token_id = config.pad_token_id, None
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype="float32")
    model.eval()
    answers = [continued(model, ids, question["new_tokens"]) for ids in question["prompts"]]
    generation = model.generation_config  # None if it found none
    ends = None if generation is None else generation.eos_token_id
    other = {
        "engine": f"paddleformers {version('paddleformers')} (paddle {paddle.__version__})",
        "end_ids": ends if isinstance(ends, list) else None if ends is None else [ends],
        "note": ""
        if padding is None
        else f"compared without pad_token_id {padding}, whose embedding it replaces by zeros in any text",
        **read_texts(folder, question["texts"]),
    }
    tokens, logits = zip(*answers, strict=True)
    np.savez(answers_file, tokens=np.stack(tokens), logits=np.stack(logits), other=np.array(json.dumps(other)))


@paddle.no_grad()
def continued(model: Any, ids: list[int], new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens [N] and the logits [N, V] from which they were chosen."""
    text, logits_NV = list(ids), []
    for _ in range(new_tokens):
        found = model(input_ids=paddle.to_tensor([text]))
        logits_1SV = found[0] if isinstance(found, tuple | list) else getattr(found, "logits", found)
        logits_NV.append(logits_1SV[0, -1].astype("float32").numpy())
        text.append(int(logits_NV[-1].argmax()))
    return np.array(text[len(ids) :]), np.stack(logits_NV)


def read_texts(folder: str, texts: list[str]) -> dict[str, Any]:
    """Return the ids of the texts, or why there are none; the weights are compared either way."""
    if not texts or not (Path(folder) / "tokenizer_config.json").is_file():
        return {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return {"text_ids": [list(map(int, tokenizer(text)["input_ids"])) for text in texts]}
    except Exception as error:  # the library may raise any exception
        return {"tokenizer_problem": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main(*sys.argv[1:])
