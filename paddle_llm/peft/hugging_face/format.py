"""Names and layouts of the tensors of an adapter of Hugging Face's PEFT (0.17 to 0.21), and their counterparts here.

    base_model.model.<layer>.lora_A.weight [r, in], .lora_B.weight [out, r]         LoRA on a linear layer
    base_model.model.<layer>.lora_embedding_A [r, vocabulary], .lora_embedding_B [width, r]   LoRA on an embedding
    base_model.model.<layer>.lora_magnitude_vector [out]                             DoRA
    base_model.model.<layer>.weight, .bias                                           trained weights of the base;
                                                                                     `.base_layer.` precedes the last
                                                                                     part in a layer with LoRA

Here a layer has the transposes `lora_A` [in, r] and `lora_B` [r, out], and `lora_magnitude` [out]. Both libraries add
the product times lora_alpha / r (with rsLoRA lora_alpha / sqrt(r)). Names of layers are those of
models/weights/names.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from paddle_llm.core.artifacts import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_SAFETENSORS
from paddle_llm.core.console import say_once
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.models.weights.wrapper_names import why_empty, why_wrapped

PEFT_PREFIX = "base_model.model."  # beginning of every tensor name in PEFT's files
LORA_PARTS = ("lora_A", "lora_B", "lora_magnitude")  # last parts of the names of LoRA's tensors in this library
_ADAPTER = "default"  # PEFT's name of an adapter: absent in PEFT's files, present in a model saved with torch.save
_LORA = re.compile(
    r"(?P<layer>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB])|lora_magnitude_vector(?:\.weight)?)"
)
_NAMED = re.compile(r".+\.lora_[AB]\.(?P<name>[^.]+)\.weight")


def is_peft(adapter_config: dict[str, Any]) -> bool:
    """Return whether an adapter_config.json is in PEFT's format."""
    return "peft_type" in adapter_config


class PeftFile(WeightFiles):
    """The tensors of an adapter of PEFT: `<layer>.lora_A`, `.lora_B`, `.lora_magnitude`, and base weights.

    Layouts are those of the file. Names of layers and weights are Hugging Face's.

    Args:
        folder: Adapter folder.
        adapter_config: Contents of its adapter_config.json.
        allow_pickle: Whether adapter_model.bin may be read if there are no safetensors.

    Attributes:
        file: The file of the tensors.
        lora: Layers with LoRA, in the file's order.
        embeddings: Those of them that are embeddings in the file.
        weights: Trained weights of the base.

    Raises:
        UserError: If the file is missing or broken, or contains a tensor that is not part of a LoRA adapter.
    """

    def __init__(self, folder: Path, adapter_config: dict[str, Any], *, allow_pickle: bool = False) -> None:
        super().__init__(folder, file=_tensor_file(folder, allow_pickle))
        self.file = next(iter(self._entries.values())).file if self._entries else folder / ADAPTER_SAFETENSORS
        self.lora: list[str] = []
        self.embeddings: set[str] = set()
        self.weights: list[str] = []
        self._wrapped: set[str] = set()
        entries, with_adapter_name = {}, 0
        shapes = {key: entry.shape for key, entry in self._entries.items()}
        if problem := why_wrapped(shapes, known=("base_model", "base_layer")) or why_empty(shapes):
            raise UserError(f"{self.file}: {problem}")
        for key, entry in self._entries.items():
            if key.startswith(PEFT_PREFIX + PEFT_PREFIX):
                raise UserError(
                    f"{self.file}: tensor name {key!r} begins with {PEFT_PREFIX!r} twice, as if PEFT wrapped one adapter in another. "
                    "Save the inner adapter with save_pretrained."
                )
            if not key.startswith(PEFT_PREFIX):
                raise UserError(
                    f"{self.file}: tensor name {key!r} does not begin with {PEFT_PREFIX!r}. Save the adapter with PEFT's "
                    "save_pretrained."
                )
            plain = re.sub(rf"\.{_ADAPTER}(?=\.|$)", "", key.removeprefix(PEFT_PREFIX))
            if self._is_second_copy(key):
                continue
            with_adapter_name += plain != key.removeprefix(PEFT_PREFIX)
            name = self._register(plain)
            if name in entries:
                raise UserError(f"{self.file}: two tensors for {name}. Save the adapter again.")
            entries[name] = entry
        self._entries = entries
        self._check_names(with_adapter_name)
        self._check_complete(bool(adapter_config.get("use_dora")))

    def _is_second_copy(self, key: str) -> bool:
        """Return whether a tensor is a second copy of a bias of modules_to_save, as PEFT writes with bias "all"."""
        for part in (".modules_to_save.", ".original_module."):
            if part in key and key.replace(part, ".") in self._entries:
                return True
        return False

    def _register(self, key: str) -> str:
        """Add a tensor to `lora`, `embeddings` or `weights`, and return its name in this class.

        Args:
            key: Name in PEFT's file, without prefix and adapter's name.

        Raises:
            UserError: If the tensor is not part of a LoRA adapter.
        """
        match = _LORA.fullmatch(key)
        if match is None:
            if other := _NAMED.fullmatch(key):
                raise UserError(
                    f"{self.file}: tensor name {key} contains the adapter's name {other['name']!r}, so PEFT cannot read it. Save "
                    "the adapter with save_pretrained, or remove the adapter's name from the tensor names."
                )
            if ".lora_" in f".{key}":
                raise UserError(
                    f"{self.file}: unsupported tensor of LoRA: {key}. Use an adapter with LoRA on linear layers and embeddings."
                )
            name = key.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            if ".base_layer." in key:
                self._wrapped.add(name)
            self.weights.append(name)
            return name
        layer = match["layer"]
        if layer not in self.lora:
            self.lora.append(layer)
        if match["embedding"]:
            self.embeddings.add(layer)
        part = match["linear"] or match["embedding"]
        return f"{layer}.lora_{part}" if part else f"{layer}.lora_magnitude"

    def _check_names(self, with_adapter_name: int) -> None:
        """Report unusual names.

        Args:
            with_adapter_name: Number of tensor names that contain the adapter's name.

        Raises:
            UserError: If a weight is named like that of a layer with LoRA, but the file has no LoRA for the layer.
        """
        if with_adapter_name:
            say_once(
                f"{self.file}: {with_adapter_name} tensor names contain the adapter's name {_ADAPTER!r}, which is ignored"
            )
        layers = set(self.lora)
        orphans = sorted(name for name in self._wrapped if name.rpartition(".")[0] not in layers)
        if orphans:
            raise UserError(
                f"{self.file}: {orphans[0]} is named like a weight of a layer with LoRA, but the file has no LoRA for it. "
                "Save the adapter again."
            )
        plain = sorted(set(self.weights) - self._wrapped)
        inside = [name for name in plain if name.rpartition(".")[0] in layers]
        if inside:
            say_once(
                f"{self.file}: {counted(len(inside), 'weight')} of layers with LoRA with a name from before PEFT 0.6, first "
                f"{inside[0]}; this library uses them, newer releases of PEFT ignore them"
            )

    def _check_complete(self, dora: bool) -> None:
        if not self.lora:
            raise UserError(f"{self.file} contains no LoRA matrices. Fetch the file again.")
        for layer in self.lora:
            for part in LORA_PARTS[: 3 if dora else 2]:
                if f"{layer}.{part}" not in self._entries:
                    raise UserError(f"{self.file}: {layer} has no {part}. The file is incomplete; fetch it again.")
            if not dora and f"{layer}.lora_magnitude" in self._entries:
                raise UserError(
                    f"{self.file}: {layer} has lora_magnitude_vector, but use_dora is not true in {ADAPTER_CONFIG}. Correct "
                    f"{ADAPTER_CONFIG}."
                )


def _tensor_file(folder: Path, allow_pickle: bool) -> str:
    """Return the name of the file that PEFT would read: safetensors take precedence over a pickle."""
    if (folder / ADAPTER_SAFETENSORS).is_file():
        return ADAPTER_SAFETENSORS
    if not (folder / ADAPTER_PICKLE).is_file():
        raise UserError(f"{folder} has no {ADAPTER_SAFETENSORS}. Fetch the file: it belongs to the adapter.")
    if not allow_pickle:
        raise UserError(
            f"{folder} has no {ADAPTER_SAFETENSORS}, only the pickle {ADAPTER_PICKLE}, which may contain code. Add --allow_pickle "
            "(only tensors are read from it), or save the adapter with safe_serialization=True."
        )
    return ADAPTER_PICKLE
