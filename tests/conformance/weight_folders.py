"""Model folders in all common variants: hypothesis draws a plan, `write` creates the folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 24, "num_key_value_heads": 2, "max_position_embeddings": 32, "tie_word_embeddings": False},
    "qwen2": {"intermediate_size": 24, "num_key_value_heads": 2, "max_position_embeddings": 32, "tie_word_embeddings": True},
    "bloom": {"n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 24, "max_position_embeddings": 32, "word_embed_proj_dim": 16},
}  # fmt: skip
_EMBEDDING = {
    "llama": "model.embed_tokens.weight",
    "qwen2": "model.embed_tokens.weight",
    "bloom": "transformer.word_embeddings.weight",
    "opt": "model.decoder.embed_tokens.weight",
}
_PREFIX = {"bloom": "transformer."}
_DEFECTS = [
    "missing_shard", "missing_tensor", "absent_from_shard", "unlisted", "truncated", "trailing", "garbage", "header_twice",
    "wrong_shape", "int8", "empty_index", "index_not_json", "half_prefix",
]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """One folder.

    Attributes:
        layout: One of "single", "shards", "single_and_stale_index", "single_and_other_shards", "bin" or "bin_shards".
        head: Tensor lm_head.weight of a tied model: "absent", "equal" or "different".
        copies: Whether a second shard has another copy of some tensors.
        extra: Tensors that no model has.
        unused: Other weight files in the folder.
        named: Whether the key `transformers_weights` of config.json names the file.
    """

    family: str
    tied: bool
    layout: str
    dtype: str
    prefix: bool
    head: str
    copies: bool
    extra: tuple[str, ...]
    unused: tuple[str, ...]
    named: bool
    defect: str | None
    seed: int


def plans(family: str) -> st.SearchStrategy[Plan]:
    tied = st.booleans() if family in ("llama", "qwen2") else st.just(True)
    extra = ["model.layers.0.self_attn.rotary_emb.inv_freq", "transformer.h.0.attn.bias", "score.weight"]
    unused = [
        "consolidated.safetensors",
        "adapter_model.safetensors",
        "model.fp16.safetensors",
        "optimizer.pt",
        "pytorch_model.bin",
    ]
    layouts = ["single", "shards", "shards", "single_and_stale_index", "single_and_other_shards", "bin", "bin_shards"]
    return st.builds(
        Plan,
        family=st.just(family),
        tied=tied,
        layout=st.sampled_from(layouts),
        dtype=st.sampled_from(["float32", "bfloat16", "float16", "float64"]),
        prefix=st.sampled_from([True, True, True, False]),
        head=st.sampled_from(["absent", "absent", "equal", "different"]),
        copies=st.booleans(),
        extra=st.lists(st.sampled_from(extra), unique=True).map(tuple),
        unused=st.lists(st.sampled_from(unused), unique=True).map(tuple),
        named=st.sampled_from([False, False, False, True]),
        defect=st.sampled_from([None] * len(_DEFECTS) + _DEFECTS),
        seed=st.integers(0, 3),
    )


def config_of(family: str, *, tied: bool) -> dict[str, Any]:
    common = {
        "model_type": family,
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    common |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if family == "bloom":
        del common["num_hidden_layers"], common["num_attention_heads"]
    return {**common, **FAMILIES[family], "tie_word_embeddings": tied}


@cache
def shapes_of(family: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of transformers' network, including its head."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_of(family, tied=True)))
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def write(plan: Plan, folder: Path) -> dict[str, np.ndarray]:
    """Write the folder.

    Returns:
        The tensors that the library should read, with transformers' names, in float64.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(plan.family, tied=plan.tied)
    random = torch.Generator().manual_seed(plan.seed)
    dtype = getattr(torch, plan.dtype)
    tensors = {
        n: torch.randn(s, generator=random, dtype=torch.float64).to(dtype) for n, s in shapes_of(plan.family).items()
    }
    _set_head(plan, tensors)
    wanted = {name: value.to(torch.float64).numpy() for name, value in tensors.items()}
    for name in plan.extra:
        tensors[name] = torch.ones(2, dtype=torch.float32)
    _damage_tensors(plan, tensors)
    if not plan.prefix:
        begin = _PREFIX.get(plan.family, "model.")
        tensors = {name.removeprefix(begin): value for name, value in tensors.items()}
    if plan.named and plan.layout == "single":
        config["transformers_weights"] = "other-name.safetensors"
    (folder / "config.json").write_text(json.dumps(config))
    _write_files(plan, folder, tensors, config.get("transformers_weights"))
    for name in plan.unused:
        if name == "optimizer.pt":
            (folder / name).write_bytes(b"state")
        elif not (folder / name).exists() and not (name.endswith(".bin") and plan.layout.startswith("bin")):
            _save(folder / name, {one: value + 1 for one, value in tensors.items() if value.is_floating_point()})
    _damage_files(plan, folder)
    return wanted


def _set_head(plan: Plan, tensors: dict[str, Any]) -> None:
    if not plan.tied:
        return
    embedding = tensors[_EMBEDDING[plan.family]]
    if plan.head == "absent":
        del tensors["lm_head.weight"]
    elif plan.head == "equal":
        tensors["lm_head.weight"] = embedding.clone()
    else:
        tensors["lm_head.weight"] = embedding + 1


def _damage_tensors(plan: Plan, tensors: dict[str, Any]) -> None:
    import torch

    victim = next(name for name in tensors if name.endswith(("down_proj.weight", "4h_to_h.weight", "fc2.weight")))
    if plan.defect == "missing_tensor":
        del tensors[victim]
    elif plan.defect == "wrong_shape":
        tensors[victim] = tensors[victim][:-1].clone()
    elif plan.defect == "int8":
        tensors[victim] = tensors[victim].to(torch.int8)
    elif plan.defect == "half_prefix" and plan.prefix:
        tensors[victim.removeprefix(_PREFIX.get(plan.family, "model."))] = tensors.pop(victim)


def _write_files(plan: Plan, folder: Path, tensors: dict[str, Any], named: str | None) -> None:
    stem, suffix = ("pytorch_model", ".bin") if plan.layout.startswith("bin") else ("model", ".safetensors")
    if plan.layout in ("single", "bin"):
        _save(folder / (named or f"{stem}{suffix}"), tensors)
        return
    other = {name: value + 1 if value.is_floating_point() else value for name, value in tensors.items()}
    if plan.layout.startswith("single_and"):
        _save(folder / "model.safetensors", tensors)
        _write_shards(plan, folder, other, stem, suffix)
        if plan.layout == "single_and_stale_index":
            for file in folder.glob("model-0*"):
                file.unlink()
        return
    _write_shards(plan, folder, tensors, stem, suffix)


def _write_shards(plan: Plan, folder: Path, tensors: dict[str, Any], stem: str, suffix: str) -> None:
    names = list(tensors)
    parts = [names[0::3], names[1::3], names[2::3]]
    files = [f"{stem}-{i:05}-of-00003{suffix}" for i in (1, 2, 3)]
    index = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    held = [{name: tensors[name] for name in part} for part in parts]
    if plan.copies:  # in an earlier file, since transformers uses the last file
        late = [name for name in parts[2] if tensors[name].is_floating_point()][:2]
        held[0] |= {name: tensors[name] + 3 for name in late}
    if plan.defect == "absent_from_shard":
        del held[1][parts[1][0]]
    if plan.defect == "unlisted":
        del index[parts[1][0]]
    for file, part in zip(files, held, strict=True):
        _save(folder / file, part)
    if plan.defect == "empty_index":
        index = {}
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    (folder / f"{stem}{suffix}.index.json").write_text(text[:-2] if plan.defect == "index_not_json" else text)


def _save(file: Path, tensors: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in tensors.items()}
    if file.suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file(tensors, file, metadata={"format": "pt"})


def _damage_files(plan: Plan, folder: Path) -> None:
    """Damage the file that is loaded."""
    read = sorted(folder.glob("model-0*-of-*.safetensors"))[-1:] or sorted(folder.glob("other-name.safetensors"))
    if (folder / "model.safetensors").is_file():
        read = [folder / "model.safetensors"]
    if plan.defect == "missing_shard":
        for file in sorted(folder.glob("*-00002-of-*")):
            file.unlink()
    if not read or plan.defect not in ("truncated", "trailing", "garbage", "header_twice"):
        return
    data = read[0].read_bytes()
    length = int.from_bytes(data[:8], "little")
    if plan.defect == "truncated":
        data = data[:-3]
    elif plan.defect == "trailing":
        data += b"\0" * 8
    elif plan.defect == "garbage":
        data = data[:8] + b"[" * length + data[8 + length :]
    else:
        header = json.loads(data[8 : 8 + length])
        name, first = next(item for item in header.items() if item[0] != "__metadata__")
        other = json.dumps({name: {**first, "data_offsets": [0, 1]}})[1:-1]
        text = ("{" + other + "," + json.dumps(header)[1:]).encode()
        data = len(text).to_bytes(8, "little") + text + data[8 + length :]
    read[0].write_bytes(data)
