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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.core.artifacts import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_SAFETENSORS
from paddle_llm.core.console import say_once
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights import names
from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.models.weights.vocabulary import real_vocab_size, vocabulary_axis
from paddle_llm.models.weights.wrapper_names import why_empty, why_wrapped
from paddle_llm.peft.hugging_face.targets import checked, is_target, saved_modules

BEGIN = "base_model.model."
OWN = ("lora_A", "lora_B", "lora_magnitude")  # the last part of the names of LoRA's tensors, here
_ADAPTER = "default"  # PEFT's name of an adapter: absent in PEFT's files, present in a model saved with torch.save
_LORA = re.compile(
    r"(?P<layer>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB])|lora_magnitude_vector(?:\.weight)?)"
)
_NAMED = re.compile(r".+\.lora_[AB]\.(?P<name>[^.]+)\.weight")


def is_peft(described: dict[str, Any]) -> bool:
    """Return whether an adapter_config.json is in PEFT's format."""
    return "peft_type" in described


class PeftFile(WeightFiles):
    """The tensors of an adapter of PEFT: `<layer>.lora_A`, `.lora_B`, `.lora_magnitude`, and base weights.

    Layouts are those of the file. Names of layers and weights are Hugging Face's.

    Args:
        folder: Adapter folder.
        described: Contents of its adapter_config.json.
        allow_pickle: Whether adapter_model.bin may be read if there are no safetensors.

    Attributes:
        file: The file of the tensors.
        lora: Layers with LoRA, in the file's order.
        embeddings: Those of them that are embeddings in the file.
        weights: Trained weights of the base.

    Raises:
        UserError: If the file is missing or broken, or holds a tensor that is not part of a LoRA adapter.
    """

    def __init__(self, folder: Path, described: dict[str, Any], *, allow_pickle: bool = False) -> None:
        super().__init__(folder, file=_tensor_file(folder, allow_pickle))
        self.file = next(iter(self._entries.values())).file if self._entries else folder / ADAPTER_SAFETENSORS
        self.lora: list[str] = []
        self.embeddings: set[str] = set()
        self.weights: list[str] = []
        self._wrapped: set[str] = set()
        entries, named = {}, 0
        shapes = {key: entry.shape for key, entry in self._entries.items()}
        if problem := why_wrapped(shapes, known=("base_model", "base_layer")) or why_empty(shapes):
            raise UserError(f"{self.file}: {problem}")
        for key, entry in self._entries.items():
            if key.startswith(BEGIN + BEGIN):
                raise UserError(
                    f"{self.file}: tensor name {key!r} begins with {BEGIN!r} twice, as if PEFT wrapped one adapter in another. "
                    "Save the inner adapter with save_pretrained."
                )
            if not key.startswith(BEGIN):
                raise UserError(
                    f"{self.file}: tensor name {key!r} does not begin with {BEGIN!r}. Save the adapter with PEFT's "
                    "save_pretrained."
                )
            plain = re.sub(rf"\.{_ADAPTER}(?=\.|$)", "", key.removeprefix(BEGIN))
            if self._is_second_copy(key):
                continue
            named += plain != key.removeprefix(BEGIN)
            name = self._own_name(plain)
            if name in entries:
                raise UserError(f"{self.file}: two tensors for {name}. Save the adapter again.")
            entries[name] = entry
        self._entries = entries
        self._report(named)
        self._check_complete(bool(described.get("use_dora")))

    def _is_second_copy(self, key: str) -> bool:
        """Return whether a tensor is a second copy of a bias of modules_to_save, as PEFT writes with bias "all"."""
        for part in (".modules_to_save.", ".original_module."):
            if part in key and key.replace(part, ".") in self._entries:
                return True
        return False

    def _own_name(self, key: str) -> str:
        """Return this library's name of one of PEFT's tensors."""
        match = _LORA.fullmatch(key)
        if match is None:
            if other := _NAMED.fullmatch(key):
                raise UserError(
                    f"{self.file}: tensor name {key} contains the adapter's name {other['name']!r}, so PEFT cannot read it. Save "
                    "the adapter with save_pretrained, or remove the adapter's name from the tensor names."
                )
            if ".lora_" in f".{key}":
                raise UserError(
                    f"{self.file}: {key} is not a tensor of LoRA on a linear layer or an embedding. Use plain LoRA."
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

    def _report(self, named: int) -> None:
        if named:
            say_once(f"{self.file}: {named} tensor names contain the adapter's name {_ADAPTER!r}, which is ignored")
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
                f"{self.file}: {len(inside)} weights of layers with LoRA have names from before PEFT 0.6, such as {inside[0]}; "
                "they are used here, newer releases of PEFT ignore them"
            )

    def _check_complete(self, dora: bool) -> None:
        if not self.lora:
            raise UserError(f"{self.file} contains no LoRA matrices. Fetch the file again.")
        for layer in self.lora:
            for own in OWN[: 3 if dora else 2]:
                if f"{layer}.{own}" not in self._entries:
                    raise UserError(f"{self.file}: {layer} has no {own}. The file is incomplete; fetch it again.")
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


class PeftTensors(PeftFile):
    """The tensors of an adapter of PEFT under canonical names, in PaddleNLP's layout.

    Args:
        folder: Adapter folder.
        described: Contents of its adapter_config.json.
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
        described: dict[str, Any],
        family: str,
        base: Mapping[str, int],
        config: Any,
        *,
        allow_pickle: bool = False,
    ) -> None:
        super().__init__(folder, described, allow_pickle=allow_pickle)
        self._family, self._config = family, config
        self._foreign = {names.hugging_face(family, name, ndim).name: name for name, ndim in base.items()}
        self._ndim = dict(base)
        self._tied_head = names.tied_head(family, config, is_hugging_face=True)
        self._check_tied_head(described)
        self._stored: dict[str, tuple[str, bool]] = {}
        unknown = []
        for key, entry in self._entries.items():
            layer, _, own = key.rpartition(".")
            weight = self._foreign.get(f"{layer}.weight" if own in OWN else key)
            if weight is None:
                unknown.append(key)
            elif own in OWN:
                self._stored[f"{weight.removesuffix('.weight')}.{own}"] = (key, own != "lora_magnitude")
            else:
                matrix = len(entry.shape) == 2
                self._stored[weight] = (key, matrix and names.hugging_face(family, weight, 2).transpose)
        if unknown:
            raise UserError(
                f"{folder}: {len(unknown)} tensors belong to no weight of this base, first {unknown[0]}. Give the base of its "
                "training, or drop --fuse_attention_qkv and --fuse_attention_ffn, which fuse several matrices."
            )
        self._check_vocabulary()
        checked(folder, lambda: self._check_against(described))

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
        """Raise UserError if the vocabulary was resized for the adapter, which the shapes alone would not show."""
        vocab_size = real_vocab_size(self._config)
        for name in self._stored:
            layer, _, own = name.rpartition(".")
            axis = vocabulary_axis(self._family, f"{layer}.weight" if own in OWN else name)
            if axis is None or own == ("lora_B" if axis == 0 else "lora_A") or (own == "lora_magnitude" and axis == 0):
                continue
            shape = self.shape(name)
            found = shape[min(axis, len(shape) - 1)]
            if found != vocab_size:
                raise UserError(
                    f"{self.folder}: {self._stored[name][0]} has {found} rows, but the base has a vocabulary of {vocab_size}: the "
                    f"vocabulary was resized before training. In transformers, resize the base with "
                    f"model.resize_token_embeddings({found}), save it, and use that folder as the base."
                )

    def _check_against(self, described: dict[str, Any]) -> None:
        """Raise UserError if the layers with LoRA in the file are not exactly those that adapter_config.json names."""
        head = names.HEADS.get(self._family, "")
        for foreign, name in self._foreign.items():
            module, _, last = foreign.rpartition(".")
            if last != "weight" or self._ndim[name] != 2:
                continue
            is_table = not names.hugging_face(self._family, name, 2).transpose
            expected = is_target(described, module, family=self._family, is_linear=not is_table, is_head=name == head)
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
            if module in self.lora and is_table != (module in self.embeddings):
                tensor = "lora_embedding_A" if is_table else "lora_A.weight"
                raise UserError(
                    f"{self.folder}: {module} has no {tensor}. Save the adapter with PEFT's save_pretrained."
                )
        present = set(self.weights)
        known = [*self._foreign, *([self._tied_head] if self._tied_head in present else [])]
        for entry, weights in saved_modules(described, known).items():
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
        if described.get("bias") in ("all", "lora_only") and biases and not present.intersection(biases):
            say_once(
                f"{self.folder}: bias is {described['bias']!r}, but {self.file.name} holds no biases of the layers with LoRA, "
                "because PEFT did not save them; those of the base are used"
            )

    def _check_tied_head(self, described: dict[str, Any]) -> None:
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
        copied = {name for names_ in saved_modules(described, [head, embedding]).values() for name in names_}
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
