"""Run by the Python of an environment with torch, transformers and Hugging Face's peft: what that library makes of a folder.

python peft_library.py read  BASE ADAPTER LOGITS.npy TOKENS  logits [B, S, V] of the base with the adapter
python peft_library.py write BASE ADAPTER SETTINGS.json      an adapter with random values, as peft saves it
"""

import json
import sys

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def main(action: str, base: str, adapter: str, other: str, tokens: str = "") -> None:
    model = AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32).eval()
    if action == "read":
        model = PeftModel.from_pretrained(model, adapter).eval()
        with torch.no_grad():
            np.save(other, model(torch.tensor(json.loads(tokens))).logits.numpy())
        return
    with open(other) as stream:
        settings = json.load(stream)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(adapter)


if __name__ == "__main__":
    main(*sys.argv[1:])
