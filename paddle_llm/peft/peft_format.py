"""LoRA adapters as Hugging Face's PEFT (0.17) keeps them: what is the same there, under which names, and what is not.

    adapter_config.json         peft_type "LORA", r, lora_alpha, use_rslora, target_modules, modules_to_save, ...
    adapter_model.safetensors   base_model.model.<layer>.lora_A.weight [r, in], .lora_B.weight [out, r]; and
                                base_model.model.<layer>.weight of what modules_to_save names

Here a layer has `lora_A` [in, r] and `lora_B` [r, out], the transposes. Both add lora_alpha / r (with rsLoRA lora_alpha /
sqrt(r)) times the product. Names of layers are those of models/names.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.errors import UserError
from paddle_llm.models import names
from paddle_llm.models.weight_files import WeightFiles
from paddle_llm.peft.method import Method

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
BEGIN = "base_model.model."
_LORA = re.compile(r"(.+)\.(lora_[AB])\.weight")
_IN_A_LIST = re.compile(r"(?:.*\.)?([a-z]+)\.(\d+)\.(.+)")  # layers.7.self_attn.q_proj
# Settings that, where they are given at all, ask for something that LoRA here does not do.
_OTHERWISE = {
    "use_dora": "DoRA scales whole columns of the merged weight",
    "lora_bias": "biases beside LoRA's matrices",
    "layer_replication": "layers that are used several times",
    "target_parameters": "LoRA on parameters that are no layer's weight",
    "trainable_token_indices": "single rows of the embedding",
    "megatron_config": "Megatron's layers",
    "alora_invocation_tokens": "LoRA that sets in at a token",
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # values of init_lora_weights that take something off the base


def is_peft(described: dict[str, Any]) -> bool:
    """Whether an adapter_config.json is PEFT's."""
    return "peft_type" in described


# ---- settings -------------------------------------------------------------------------------------------------------


def method_of_peft(folder: Path, described: dict[str, Any], base: dict[str, Any] | None = None) -> Method:
    """The settings of an adapter of PEFT's as this library's.

    Args:
        described: its adapter_config.json.
        base: `base_shape` of the network that it is put over; without it layers are named one by one.

    Raises:
        UserError: it does something that LoRA here does not.
    """
    _check(folder, described)
    files = PeftFile(folder)
    layers = list(dict.fromkeys(match.group(1) for key in files.names() if (match := _LORA.fullmatch(key))))
    others = [key for key in files.names() if not _LORA.fullmatch(key)]
    strange = [key for key in others if ".lora_" in key]
    if strange or not layers:
        what = f"holds {strange[0]}, LoRA beside what is no linear layer" if strange else "holds no matrices of LoRA"
        raise UserError(f"{folder / TENSORS} {what}")
    return Method(
        "lora",
        rank=int(described["r"]),
        alpha=float(described["lora_alpha"]),
        dropout=float(described.get("lora_dropout") or 0.0),
        targets=_targets(layers, base),
        rslora=bool(described.get("use_rslora")),
        modules_to_save=tuple(dict.fromkeys(_pattern(key, base) for key in others if not _is_copy(files, key, others))),
    )


def _is_copy(files: PeftFile, key: str, others: list[str]) -> bool:
    """Whether it is the head of a base that ties it to its embedding: the same numbers a second time."""
    return key == names.FOREIGN_TIED_HEAD and any(
        one != key and files.shape(one) == files.shape(key) and np.array_equal(files.view(one), files.view(key))
        for one in others
    )


def _check(folder: Path, described: dict[str, Any]) -> None:
    """Refuse what an adapter of PEFT's may ask for and LoRA here does not do."""
    kind = described.get("peft_type")
    problems = [] if kind == "LORA" else [f"it is {kind}, and LORA alone is taken over"]
    problems += [f"{name}: {what}" for name, what in _OTHERWISE.items() if described.get(name)]
    for name, rest in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        other = sorted({value for value in (described.get(name) or {}).values() if value != described.get(rest)})
        if other:
            problems.append(f"{name}: {other} besides {rest} {described.get(rest)}; here all layers have one")
    if described.get("bias", "none") != "none":
        problems.append(f"bias {described['bias']!r}: biases that are trained; list their layers in modules_to_save")
    start = described.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        problems.append(f"init_lora_weights {start!r}: it stands over a base with other weights; save it as plain LoRA")
    if problems:
        raise UserError(f"{folder}: an adapter of PEFT's that cannot be expressed here: {'; '.join(problems)}")
    if not isinstance(described.get("r"), int) or not isinstance(described.get("lora_alpha"), int | float):
        raise UserError(f"{folder / CONFIG} says no r or no lora_alpha: it is not PEFT's, or cut off")


def _targets(layers: list[str], base: dict[str, Any] | None) -> tuple[str, ...]:
    """Patterns that match these layers and no others."""
    numbers: dict[str, list[int]] = {}
    for layer in layers:
        match = _IN_A_LIST.fullmatch(names.native_infixes(layer))
        if match is None:
            raise UserError(
                f"LoRA beside {layer}, which is in no transformer block: put it into modules_to_save instead"
            )
        numbers.setdefault(f"{match.group(1)}/{match.group(3)}", []).append(int(match.group(2)))
    found = []
    for end, where in numbers.items():
        stack, _, layer = end.partition("/")
        if base is not None and sorted(where) == list(range(base["layers"])):
            found.append(layer)
        else:
            found.append(rf".*\.{stack}\.({'|'.join(map(str, sorted(where)))})\.{re.escape(layer)}")
    return tuple(found)


def _pattern(key: str, base: dict[str, Any] | None) -> str:
    """What names a weight of the base in `Method.modules_to_save`."""
    if base is not None:
        family = base["family"]
        for known in (names.EMBEDDINGS[family], names.HEADS.get(family, "")):
            if known and key in names.foreign_spellings(family, names.hugging_face(family, known, 2).name):
                return known
    match = _IN_A_LIST.fullmatch(names.native_infixes(key))
    return f"{match.group(1)}.{match.group(2)}.{match.group(3)}" if match else ".".join(key.split(".")[-2:])


def config_of_peft(method: Method, layers: list[str], retrained: list[str], base: str, blocks: int) -> dict[str, Any]:
    """adapter_config.json for PEFT.

    Args:
        layers, retrained: Hugging Face's names of the layers beside which LoRA stands, and of weights of the base.
        base: what `base_model_name_or_path` is to say.
        blocks: number of transformer blocks in the base.
    """
    ends: dict[str, list[str]] = {}
    for layer in layers:
        ends.setdefault(layer.rpartition(".")[2], []).append(layer)
    everywhere = all(_in_every_block(found, blocks) for found in ends.values())
    alpha = 2 * method.rank if method.alpha is None else method.alpha
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": method.dropout,
        "modules_to_save": sorted({name.rpartition(".")[0] for name in retrained}) or None,
        "peft_type": "LORA",
        "r": method.rank,
        "rank_pattern": {},
        "target_modules": sorted(ends) if everywhere else sorted(layers),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": method.rslora,
    }


def _in_every_block(layers: list[str], blocks: int) -> bool:
    """Whether these layers are one of each block: their common end names them then, and nothing else in a block."""
    found = [_IN_A_LIST.fullmatch(layer) for layer in layers]
    rests = {match.group(3) for match in found if match}
    return len(rests) == 1 and sorted(int(match.group(2)) for match in found if match) == list(range(blocks))


# ---- tensors --------------------------------------------------------------------------------------------------------


class PeftFile(WeightFiles):
    """The tensors of PEFT's adapter_model.safetensors, without the beginning that all their names have."""

    def __init__(self, folder: Path):
        if not (folder / TENSORS).is_file():
            found = [file.name for file in folder.glob("adapter_model*")]
            raise UserError(
                f"{folder} has no {TENSORS}"
                + (f", but {found[0]}, which is not read: save it with safe_serialization=True" if found else "")
            )
        super().__init__(folder, file=TENSORS)
        strange = [name for name in self._entries if not name.startswith(BEGIN)]
        if strange:
            raise UserError(f"{folder / TENSORS}: {strange[0]} is no name that PEFT gives")
        # Older versions name the adapter in between.
        self._entries = {
            name.removeprefix(BEGIN).replace(".default.", "."): entry for name, entry in self._entries.items()
        }


class PeftTensors(PeftFile):
    """The same under canonical names, in PaddleNLP's layout.

    Args:
        base: canonical names of the base's weights.
        config: PaddleNLP's configuration of the base.

    Raises:
        UserError: tensors that belong to no weight of the base; a tied head that was trained apart from its embedding.
    """

    def __init__(self, folder: Path, family: str, base: Iterable[str], config: Any):
        super().__init__(folder)
        known = {}
        for name in base:
            spelled = names.hugging_face(family, name, 2)
            known.update({one: name for one in names.foreign_spellings(family, spelled.name)})
        entries, self._stored, strange = self._entries, {}, []
        self._check_tied_head(family, config)
        for key in self._entries:
            match = _LORA.fullmatch(key)
            weight = known.get(f"{match.group(1)}.weight" if match else key)
            if weight is None:
                strange.append(key)
            elif match:
                self._stored[f"{weight.removesuffix('.weight')}.{match.group(2)}"] = (key, True)
            else:
                matrix = len(entries[key].shape) == 2
                self._stored[weight] = (key, matrix and names.hugging_face(family, weight, 2).transpose)
        if strange:
            raise UserError(
                f"{folder} has {strange[0]} and {len(strange) - 1} more tensors that belong to no weight of this base: it is of "
                "another one, or the base keeps several matrices in one (--fuse_attention_qkv, --fuse_attention_ffn: leave them out)"
            )

    def names(self) -> list[str]:
        return list(self._stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.view(name).shape)

    def dtype(self, name: str) -> str:
        return super().dtype(self._stored[name][0])

    def view(self, name: str) -> np.ndarray:
        key, transposed = self._stored[name]
        values = super().view(key)
        return values.T if transposed else values

    def read(self, name: str, axis: int, start: int, stop: int) -> np.ndarray:
        index = [slice(None)] * len(self.shape(name))
        index[axis] = slice(start, stop)
        part = np.array(self.view(name)[tuple(index)])
        return (part.astype(np.uint32) << 16).view(np.float32) if part.dtype == np.uint16 else part

    def _check_tied_head(self, family: str, config: Any) -> None:
        """PEFT trains a copy of each of the two; here they are one."""
        head = names.tied_head(family, config, foreign=True)
        if head is None:
            return
        spelled = names.foreign_spellings(family, names.hugging_face(family, names.EMBEDDINGS[family], 2).name)
        embedding = next((one for one in spelled if one in self._entries), None)
        if head not in self._entries and embedding is None:
            return
        if (
            embedding is None
            or head not in self._entries
            or not np.array_equal(WeightFiles.view(self, head), WeightFiles.view(self, embedding))
        ):
            raise UserError(
                f"{self.folder}: the embedding and the head are one weight in this base, and the adapter has trained one of them "
                "apart from the other; that cannot be expressed here"
            )
        del self._entries[head]
