"""Explain names and empty tensors in files that were saved from the wrapper of a network instead of the network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from paddle_llm.core.counts import counted

# Part of a name -> wrapper that adds it.
WRAPPERS = {
    "module": "DistributedDataParallel or DeepSpeed",
    "_orig_mod": "torch.compile",
    "_forward_module": "Lightning",
    "base_model": "PEFT",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "base_layer": "PEFT",
}


def why_wrapped(keys: Iterable[str], known: Iterable[str] = ()) -> str:
    """Return why tensors have names that no model has, and the remedy; "" if no name has a part of `WRAPPERS`.

    Args:
        keys: Names of tensors as the file has them.
        known: Parts that are expected in these names.
    """
    wrappers = {part: cause for part, cause in WRAPPERS.items() if part not in set(known)}
    for key in keys:
        for part in key.split("."):
            if part in wrappers:
                remedy = "Save the model inside the wrapper, or remove that part from the names"
                if wrappers[part] == "PEFT":
                    remedy = "Merge the adapter with PEFT (merge_and_unload) before the model is saved"
                return f"names of tensors contain {part!r}, which {wrappers[part]} adds: {key}. {remedy}."
    return ""


def why_adapter(keys: Iterable[str]) -> str:
    """Return why a folder has no weights of a model, and the remedy; "" if not all tensors belong to LoRA."""
    names = list(keys)
    if not names or any(not re.search(r"\blora_[A-Za-z]", name) for name in names):
        return ""
    return (
        "all tensors belong to LoRA, as in a checkpoint of a LoRA training. Use model/ or adapter/ of that training, or "
        "continue it with --resume_from_checkpoint."
    )


def why_empty(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return why tensors have no values, and the remedy; "" if all tensors have values.

    Args:
        shapes: Shapes by the names that the file has.
    """
    empty = [(key, shape) for key, shape in shapes.items() if 0 in shape]
    if not empty:
        return ""
    key, shape = empty[0]
    return (
        f"{counted(len(empty), 'tensor')} {'has' if len(empty) == 1 else 'have'} no values, the first is {key} {list(shape)}: DeepSpeed ZeRO stage 3 and FSDP keep only "
        "parts of the weights on a rank. Gather the weights before they are saved (zero_to_fp32.py for a checkpoint)."
    )
