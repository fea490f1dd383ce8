"""The tensors of an adapter of Hugging Face's PEFT under canonical names, checked against the base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_llm.core.artifacts import ADAPTER_CONFIG
from paddle_llm.core.console import say_once
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights import names
from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.models.weights.vocabulary import real_vocab_size, vocabulary_axis
from paddle_llm.peft.hugging_face.format import LORA_PARTS, PeftFile
from paddle_llm.peft.hugging_face.targets import is_target, report_invalid_patterns, saved_modules

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig


class PeftTensors(PeftFile):
    """The tensors of an adapter of PEFT under canonical names, in PaddleNLP's layout.

    Args:
        folder: Adapter folder.
        adapter_config: Contents of its adapter_config.json.
        family: Name of the base's family.
        base: Canonical name -> number of dimensions of each weight of the base.
        config: PaddleNLP's configuration of the base.
        allow_pickle: Whether adapter_model.bin may be read.

    Raises:
        UserError: If tensors belong to no weight of the base or are missing, the vocabulary differs, or a tied head
            was trained separately from its embedding.
    """

    def __init__(
        self,
        folder: Path,
        adapter_config: dict[str, Any],
        family: str,
        base: Mapping[str, int],
        config: PretrainedConfig,
        *,
        allow_pickle: bool = False,
    ) -> None:
        super().__init__(folder, adapter_config, allow_pickle=allow_pickle)
        self._family, self._config = family, config
        self._foreign = {names.hugging_face(family, name, ndim).name: name for name, ndim in base.items()}
        self._ndim = dict(base)
        self._tied_head = names.tied_head(family, config, is_hugging_face=True)
        self._check_tied_head(adapter_config)
        self._stored: dict[str, tuple[str, bool]] = {}
        unknown = []
        for key, entry in self._entries.items():
            layer, _, part = key.rpartition(".")
            weight = self._foreign.get(f"{layer}.weight" if part in LORA_PARTS else key)
            if weight is None:
                unknown.append(key)
            elif part in LORA_PARTS:
                self._stored[f"{weight.removesuffix('.weight')}.{part}"] = (key, part != "lora_magnitude")
            else:
                matrix = len(entry.shape) == 2
                self._stored[weight] = (key, matrix and names.hugging_face(family, weight, 2).transpose)
        if unknown:
            more = f" and {counted(len(unknown) - 1, 'other')}" if len(unknown) > 1 else ""
            raise UserError(
                f"{folder}: tensors that belong to no weight of this base: {unknown[0]}{more}. "
                "Give the base that the adapter was trained on, or drop --fuse_attention_qkv and --fuse_attention_ffn, which "
                "fuse several matrices."
            )
        self._check_vocabulary()
        with report_invalid_patterns(folder):
            self._check_layers(adapter_config)

    def names(self) -> list[str]:
        """Return the canonical names."""
        return list(self._stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self.view(name).shape)

    def dtype(self, name: str) -> str:
        """Return the stored type of a tensor."""
        return super().dtype(self._stored[name][0])

    def view(self, name: str) -> np.ndarray:
        """Return a tensor, mapped from the file."""
        key, transposed = self._stored[name]
        values = super().view(key)
        return values.T if transposed else values

    def read(self, name: str, axis: int, start: int, stop: int) -> np.ndarray:
        """Return a range of a tensor along an axis; bfloat16 is widened to fp32."""
        index = [slice(None)] * len(self.shape(name))
        index[axis] = slice(start, stop)
        part = np.array(self.view(name)[tuple(index)])
        return (part.astype(np.uint32) << 16).view(np.float32) if part.dtype == np.uint16 else part

    # --- checks --------------------------------------------------------------------------------------------------

    def _check_vocabulary(self) -> None:
        """Raise UserError if the vocabulary was resized before the adapter was trained. Shapes of other weights do not show it."""
        vocab_size = real_vocab_size(self._config)
        for name in self._stored:
            layer, _, part = name.rpartition(".")
            axis = vocabulary_axis(self._family, f"{layer}.weight" if part in LORA_PARTS else name)
            if (
                axis is None
                or part == ("lora_B" if axis == 0 else "lora_A")
                or (part == "lora_magnitude" and axis == 0)
            ):
                continue
            shape = self.shape(name)
            found = shape[min(axis, len(shape) - 1)]
            if found != vocab_size:
                raise UserError(
                    f"{self.folder}: {self._stored[name][0]} has {found} rows, but the base has a vocabulary of {vocab_size}: the "
                    f"vocabulary was resized before training. In transformers, resize the base with "
                    f"model.resize_token_embeddings({found}), save it, and use that folder as the base."
                )

    def _check_layers(self, adapter_config: dict[str, Any]) -> None:
        """Raise UserError if the layers with LoRA in the file are not exactly those that adapter_config.json names."""
        head = names.HEADS.get(self._family, "")
        for foreign, name in self._foreign.items():
            module, _, last = foreign.rpartition(".")
            if last != "weight" or self._ndim[name] != 2:
                continue
            is_embedding = not names.hugging_face(self._family, name, 2).transpose
            expected = is_target(
                adapter_config, module, family=self._family, is_linear=not is_embedding, is_head=name == head
            )
            if expected != (module in self.lora):
                mismatch = (
                    "name it, but the file has no LoRA for it"
                    if expected
                    else "do not name it, but the file has LoRA for it"
                )
                raise UserError(
                    f"{self.folder}: {ADAPTER_CONFIG} and {self.file.name} differ about {module}: target_modules (with "
                    f"exclude_modules, modules_to_save and layers_to_transform) {mismatch}. Fetch both files again."
                )
            if module in self.lora and is_embedding != (module in self.embeddings):
                tensor = "lora_embedding_A" if is_embedding else "lora_A.weight"
                raise UserError(
                    f"{self.folder}: {module} has no {tensor}. Save the adapter with PEFT's save_pretrained."
                )
        present = set(self.weights)
        known = [*self._foreign, *([self._tied_head] if self._tied_head in present else [])]
        for entry, weights in saved_modules(adapter_config, known).items():
            missing = [name for name in weights if name not in present]
            if missing:
                raise UserError(
                    f"{self.folder}: modules_to_save names {entry!r}, but {self.file.name} has no {missing[0]}. "
                    "The file is incomplete; fetch it again."
                )
            if not weights:
                say_once(
                    f"{self.folder}: modules_to_save names {entry!r}, which this base does not have; it is ignored"
                )
        biases = [name for name in self._foreign if name.endswith(".bias") and name.rpartition(".")[0] in self.lora]
        if adapter_config.get("bias") in ("all", "lora_only") and biases and not present.intersection(biases):
            say_once(
                f"{self.folder}: bias is {adapter_config['bias']!r}, but {self.file.name} contains no biases of the layers with LoRA, "
                "because PEFT did not save them; those of the base are used"
            )

    def _check_tied_head(self, adapter_config: dict[str, Any]) -> None:
        """Drop the head from the tensors if it is tied to the embedding.

        With modules_to_save, PEFT trains a separate copy of each of the two; otherwise it loads both into one weight,
        as here.
        """
        head = self._tied_head
        if head is None:
            return
        if head.removesuffix(".weight") in self.lora:
            raise UserError(
                f"{self.folder}: LoRA on {head.removesuffix('.weight')}, which is tied to the embedding in this base "
                "(tie_word_embeddings), is not supported. Merge the adapter with PEFT."
            )
        embedding = names.hugging_face(self._family, names.EMBEDDINGS[self._family], 2).name
        present = [name for name in (head, embedding) if name in self._entries]
        copied = {name for weights in saved_modules(adapter_config, [head, embedding]).values() for name in weights}
        is_separate = len(present) == 1 and present[0] in copied
        if len(present) == 2:
            is_separate = not np.array_equal(WeightFiles.view(self, head), WeightFiles.view(self, embedding))
        if is_separate:
            raise UserError(
                f"{self.folder}: embedding and head are one weight in this base, but the adapter trained them separately, which "
                "is not supported. Merge the adapter with PEFT."
            )
        if head in present:
            entry = self._entries.pop(head)
            self._entries.setdefault(embedding, entry)
