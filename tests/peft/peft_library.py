"""What Hugging Face's peft and transformers compute from a folder, in this process. Needs the extra `hf`."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = [[5, 9, 17, 33, 2, 71, 4, 12], [90, 3, 3, 45, 60, 7, 101, 8]]


def base_model(base: Path) -> Any:
    """The base in fp32, in evaluation mode; its own copy."""
    return copy.deepcopy(_base_model(base))


@functools.lru_cache(maxsize=8)
def _base_model(base: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32).eval()


def loaded(base: Path, adapter: Path, *, trains: bool = False) -> Any:
    """The base with an adapter, in evaluation mode. Fails where peft misses tensors or knows no place for them.

    Args:
        trains: whether the adapter's tensors have gradients.
    """
    from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    with quiet():
        config = PeftConfig.from_pretrained(adapter)
        config.inference_mode = not trains
        model = get_peft_model(base_model(base), config)
        state = set_peft_model_state_dict(model, load_peft_weights(str(adapter), device="cpu"))
    missing = [name for name in state.missing_keys if ".lora_" in name or ".modules_to_save." in name]
    # With bias "all" peft writes biases of modules_to_save twice, and reads one of the two.
    unexpected = [name for name in state.unexpected_keys if ".modules_to_save." not in name]
    assert not missing and not unexpected, (missing, unexpected)
    return model.eval()


def logits(model: Any, tokens: list[list[int]] | None = None) -> np.ndarray:
    """[B, S, V]"""
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens or TOKENS)).logits.numpy()


def gradients(model: Any, weights_BSV: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of the weighted sum of all logits, by the names of adapter_model.safetensors."""
    import torch
    from peft import get_peft_model_state_dict

    (model(torch.tensor(TOKENS)).logits * torch.tensor(weights_BSV)).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    with quiet():
        named = get_peft_model_state_dict(model, state_dict=found)
    return {name: value.numpy() for name, value in named.items()}


def write(base: Path, adapter: Path, seed: int = 3, **settings: Any) -> Any:
    """Write an adapter with random values as peft saves it, and return the model in evaluation mode.

    Args:
        settings: of LoraConfig.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    with quiet():
        model = get_peft_model(base_model(base), LoraConfig(task_type="CAUSAL_LM", **settings))
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(adapter)
    return model.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress peft's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
