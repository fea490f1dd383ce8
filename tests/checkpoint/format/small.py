"""A small checkpoint of four ranks with everything that the format has: tp2 x sharding2 with padded rows, and state."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paddle_llm.checkpoint.format.index import whole
from paddle_llm.checkpoint.format.manifest import Manifest, write_json
from paddle_llm.checkpoint.format.state import STATE, encode
from paddle_llm.checkpoint.format.writer import LocalTensor, RankFile, finish, write_rank_file
from paddle_llm.core.atomic_output import publish
from paddle_llm.models.weights.shards import Shard

WORDS, PADDED = 11, 12
STATE_OF_RANK_0 = {
    "step": 10,
    "loss": float("nan"),
    "random": ("MT19937", np.arange(624, dtype=np.uint32), 5),
    "scheduler": {"last_lr": 1 / 3, "base": np.float32(0.1)},
}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Return the full tensors by key; padding rows are zeros."""
    random = np.random.default_rng(seed)

    def numbers(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    def bits(*shape: int) -> np.ndarray:
        return (numbers(*shape).view(np.uint32) >> 16).astype(np.uint16)

    found = {"weights/embed": bits(PADDED, 6), "moment1/embed": numbers(PADDED, 6)}
    for values in found.values():
        values[WORDS:] = 0
    for kind in ("weights", "moment1"):
        found[f"{kind}/qkv"] = numbers(6, 16)
        found[f"{kind}/norm"] = numbers(6)
    found["beta1_pow_acc/qkv"] = np.array([0.9], np.float32)
    found["state/scale"] = np.array(65536.0)
    found["state/flags"] = np.array([True, False, True])
    return found


def shard_of(key: str, values: np.ndarray, tensor: int, rank: int) -> Shard:
    """Return what a tensor-parallel rank holds of a tensor."""
    if key.endswith("/embed"):
        rows = len(values) // tensor
        return Shard(values.shape, 0, ((rank * rows, (rank + 1) * rows),))
    if key.endswith("/qkv") and values.ndim == 2:  # queries 0 to 8, keys 8 to 12, values 12 to 16
        sections = ((0, 8), (8, 4), (12, 4))
        ranges = ((at + rank * n // tensor, at + (rank + 1) * n // tensor) for at, n in sections)
        return Shard(values.shape, 1, tuple(ranges))
    return whole(values.shape)


def owned(full: dict[str, np.ndarray], rank: int) -> dict[str, LocalTensor]:
    """Return what a rank of tp2 x sharding2 owns: its tensor-parallel part of every second tensor."""
    tensor_rank, sharding_rank = rank % 2, rank // 2
    parts = {}
    for number, (key, values) in enumerate(full.items()):
        shard = shard_of(key, values, 2, tensor_rank)
        if number % 2 == sharding_rank and (tensor_rank == 0 or (values.ndim and shard.is_split)):
            parts[key] = LocalTensor.of(
                shard.take(values) if values.ndim else values, shard, WORDS if key.endswith("/embed") else None
            )
    return parts


def manifest(step: int) -> Manifest:
    """Return a manifest without files."""
    return Manifest(
        step=step,
        layout={"data": 1, "sharding": 2, "tensor": 2, "pipeline": 1, "sharding_stage": 1},
        global_batch=8,
        identity={"model": {"hidden_size": 6}},
        settings={"learning_rate": 1e-4, "betas": (0.9, 0.95)},
        versions={"paddle_llm": "0.3.0"},
    )


def save(output: Path, step: int = 10, seed: int = 0) -> Path:
    """Save a checkpoint as four ranks do, one after the other, and return its folder."""
    staged, final = output / f".saving-{step}", output / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    full = tensors(seed)
    state, arrays = encode(STATE_OF_RANK_0, "state/rank-0")
    ranks = []
    for rank in range(4):
        parts = owned(full, rank)
        if rank == 0:
            parts |= {key: LocalTensor.of(values) for key, values in arrays.items()}
        ranks.append(RankFile.from_json(write_rank_file(staged, rank, parts).to_json()))
    (staged / "config.json").write_text('{"hidden_size": 6}')  # written by another library
    finish(staged, ranks, manifest(step), {STATE: write_json(staged, STATE, state)})
    publish(staged, final)
    return final
