"""Answers of transformers on torch.

in_processes.py runs it as `python transformers_child.py QUESTION.json ANSWERS.npz`.

The weights are converted to fp32. Each prompt is continued alone, by transformers' own `generate` with its cache.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def main(question_file: str, answers_file: str) -> None:
    """Answer a question; see in_processes.py."""
    question = json.loads(Path(question_file).read_text())
    folder = question["folder"]
    file = {"gguf_file": question["gguf"]} if question["gguf"] else {}
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **file
    )
    model, loading = loaded
    # transformers initialises missing weights randomly and only logs a warning.
    wrong = {kind: sorted(map(str, found)) for kind, found in loading.items() if found}
    if wrong:
        print(f"transformers did not load all weights: {wrong}", file=sys.stderr)
        sys.exit(3)  # see in_processes.py
    model.eval()
    ends = model.generation_config.eos_token_id
    answers = [continued(model, ids, question["new_tokens"]) for ids in question["prompts"]]
    other = {
        "engine": f"transformers {transformers.__version__} (torch {torch.__version__})",
        "end_ids": None if file else ends if isinstance(ends, list) else [] if ends is None else [ends],
        **read_texts(folder, question["texts"], model),
    }
    tokens, logits = zip(*answers, strict=True)
    np.savez(answers_file, tokens=np.stack(tokens), logits=np.stack(logits), other=np.array(json.dumps(other)))


@torch.no_grad()
def continued(model: Any, ids: list[int], new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens [N] and the logits [N, V] from which they were chosen."""
    prompt_1S = torch.tensor([ids])
    choice = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    # No end tokens, so that every engine generates the same number of tokens.
    model.generation_config = choice
    found = model.generate(prompt_1S, attention_mask=torch.ones_like(prompt_1S), generation_config=choice)
    logits_NV = torch.stack([step[0] for step in found.logits]).float().numpy()
    return found.sequences[0, len(ids) :].numpy(), logits_NV


def read_texts(folder: str, texts: list[str], model: Any) -> dict[str, Any]:
    """Return the ids of the texts, or why there are none; the weights are compared either way."""
    if not texts or not (Path(folder) / "tokenizer_config.json").is_file():
        return {}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        # The usual call: the network must accept everything that the tokenizer returns.
        model.generate(**tokenizer(texts[0], return_tensors="pt"))
        return {"text_ids": [list(tokenizer(text)["input_ids"]) for text in texts]}
    except Exception as error:  # the library may raise any exception
        return {"tokenizer_problem": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main(*sys.argv[1:])
