"""Answers of PaddleFormers. Run as `python paddleformers_child.py QUESTION.json ANSWERS.npz` by in_processes.py.

On a CPU its fused RMSNorm and its flash attention do not run: both are off. The text is computed anew for each token, without
a cache: this is about weights, names and configuration.
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


def main(asked: str, heard: str) -> None:
    question = json.loads(Path(asked).read_text())
    folder = question["folder"]
    paddle.set_device("cpu")
    config = AutoConfig.from_pretrained(folder)
    config.fuse_rms_norm = False
    config._attn_implementation = "eager"
    # Its embedding gives zeros for the padding's token wherever that stands, also in the middle of a text.
    padding, config.pad_token_id = config.pad_token_id, None
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype="float32")
    model.eval()
    answers = [continued(model, ids, question["new_tokens"]) for ids in question["prompts"]]
    generation = model.generation_config  # None where it has not found one
    ends = None if generation is None else generation.eos_token_id
    more = {
        "engine": f"paddleformers {version('paddleformers')} (paddle {paddle.__version__})",
        "end_ids": ends if isinstance(ends, list) else None if ends is None else [ends],
        "note": ""
        if padding is None
        else f"compared without pad_token_id {padding}, which it reads as zeros in any text",
        **read_texts(folder, question["texts"]),
    }
    tokens, logits = zip(*answers, strict=True)
    np.savez(heard, tokens=np.stack(tokens), logits=np.stack(logits), heard=np.array(json.dumps(more)))


@paddle.no_grad()
def continued(model: Any, ids: list[int], new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [N] and the logits [N, V] that they were chosen by."""
    text, logits_NV = list(ids), []
    for _ in range(new_tokens):
        found = model(input_ids=paddle.to_tensor([text]))
        logits_1SV = found[0] if isinstance(found, tuple | list) else getattr(found, "logits", found)
        logits_NV.append(logits_1SV[0, -1].astype("float32").numpy())
        text.append(int(logits_NV[-1].argmax()))
    return np.array(text[len(ids) :]), np.stack(logits_NV)


def read_texts(folder: str, texts: list[str]) -> dict[str, Any]:
    """Ids of the texts, or why there are none: the weights are compared all the same."""
    if not texts or not (Path(folder) / "tokenizer_config.json").is_file():
        return {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return {"text_ids": [list(map(int, tokenizer(text)["input_ids"])) for text in texts]}
    except Exception as error:  # it raises whatever comes
        return {"tokenizer_problem": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main(*sys.argv[1:])
