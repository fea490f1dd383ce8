"""Answers of transformers on torch. Run as `python transformers_child.py QUESTION.json ANSWERS.npz` by in_processes.py.

The weights are widened to fp32, whatever they are stored in; each prompt is continued alone, by transformers' own
`generate` with its cache.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def main(asked: str, heard: str) -> None:
    question = json.loads(Path(asked).read_text())
    folder = question["folder"]
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    # transformers gives what it does not find random values, and says so in a line that nobody reads.
    wrong = {kind: sorted(map(str, found)) for kind, found in loading.items() if found}
    if wrong:
        print(f"transformers did not find the model's weights as they should be: {wrong}", file=sys.stderr)
        sys.exit(3)  # which in_processes.py knows
    model.eval()
    ends = model.generation_config.eos_token_id
    answers = [continued(model, ids, question["new_tokens"]) for ids in question["prompts"]]
    more = {
        "engine": f"transformers {transformers.__version__} (torch {torch.__version__})",
        "end_ids": ends if isinstance(ends, list) else [] if ends is None else [ends],
        **read_texts(folder, question["texts"], model),
    }
    tokens, logits = zip(*answers, strict=True)
    np.savez(heard, tokens=np.stack(tokens), logits=np.stack(logits), heard=np.array(json.dumps(more)))


@torch.no_grad()
def continued(model: Any, ids: list[int], new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [N] and the logits [N, V] that they were chosen by."""
    prompt_1S = torch.tensor([ids])
    choice = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    # Over the model's own ends, so that every engine gives as many tokens.
    model.generation_config = choice
    found = model.generate(prompt_1S, attention_mask=torch.ones_like(prompt_1S), generation_config=choice)
    logits_NV = torch.stack([step[0] for step in found.logits]).float().numpy()
    return found.sequences[0, len(ids) :].numpy(), logits_NV


def read_texts(folder: str, texts: list[str], model: Any) -> dict[str, Any]:
    """Ids of the texts, or why there are none: the weights are compared all the same."""
    if not texts or not (Path(folder) / "tokenizer_config.json").is_file():
        return {}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        # As everybody calls it: the network must take all that the tokenizer gives.
        model.generate(**tokenizer(texts[0], return_tensors="pt"))
        return {"text_ids": [list(tokenizer(text)["input_ids"]) for text in texts]}
    except Exception as error:  # it raises whatever comes
        return {"tokenizer_problem": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main(*sys.argv[1:])
