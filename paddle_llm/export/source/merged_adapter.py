"""Merges an adapter into the weights of its base, one tensor at a time, bit for bit as `peft.merge` does.

LoRA, rsLoRA, DoRA and AdaLoRA can be merged, and so can weights of the base that were trained directly
(--modules_to_save, --freeze_layers). The adapter is read from its folder (in this library's format or PEFT's) or from
a checkpoint of its training. If only one of base and adapter fuses query, key and value into one matrix, the columns
are assigned to the matrices of the base.

Memory: four times the size of one weight in fp32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle

from paddle_llm.config.methods import METHODS
from paddle_llm.core.artifacts import ADAPTER_SAFETENSORS, MANIFEST
from paddle_llm.core.errors import UserError
from paddle_llm.export.source.dtypes import widened
from paddle_llm.export.source.sharded_checkpoint import CheckpointTensors
from paddle_llm.export.source.source import Source, Tensors
from paddle_llm.models.weights.names import EMBEDDINGS, Piece, fused_pieces, is_tied
from paddle_llm.peft.adapter_files import base_shape, open_tensors, read_method
from paddle_llm.peft.merge import TIED_EMBEDDING
from paddle_llm.peft.method import Method


def merge_adapter(base: Source, folder: Path, *, allow_pickle: bool = False) -> MergedTensors:
    """Return the weights of `base` with an adapter merged into them.

    Args:
        base: The base model.
        folder: Adapter folder (this library's or PEFT's), or checkpoint of a run that trained one.
        allow_pickle: Whether PEFT's adapter_model.bin may be read.

    Raises:
        UserError: If the method cannot be merged, the adapter belongs to another base, or it is incomplete.
    """
    is_checkpoint = (folder / MANIFEST).is_file()
    adapter = _AdapterCheckpoint(folder, base) if is_checkpoint else _AdapterFolder(folder, base, allow_pickle)
    if not METHODS[adapter.method.name].mergeable and adapter.method.name != "freeze":
        raise UserError(
            f"{folder} was trained by {adapter.method.name}, which cannot be merged into the weights or exported. "
            "Use it with `paddle-llm generate --adapter`, or train LoRA."
        )
    return MergedTensors(base, adapter)


class _AdapterFolder:
    """The tensors of an adapter folder."""

    def __init__(self, folder: Path, base: Source, allow_pickle: bool) -> None:
        self.folder, shape = folder, base_shape(base.family.name, base.config)
        self.method: Method = read_method(folder, base=shape, allow_pickle=allow_pickle)
        ndims = {name: len(base.shapes[name]) for name in base.names()}
        self._files = open_tensors(folder, base.family.name, ndims, base.config, allow_pickle=allow_pickle)

    def names(self) -> list[str]:
        return self._files.names()

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as stored; bfloat16 as uint16 bits."""
        return self._files.view(name)


class _AdapterCheckpoint:
    """The tensors of an adapter in a checkpoint of its training."""

    def __init__(self, folder: Path, base: Source) -> None:
        files = CheckpointTensors(folder)
        if files.method is None:
            raise UserError(f"{folder} contains a whole network, not an adapter. Export it without --adapter.")
        ours, theirs = base_shape(base.family.name, base.config), base_shape(files.family.name, files.config)
        if ours != theirs:
            raise UserError(
                f"The adapter in {folder} was trained on another base: {theirs}. {base.folder} has {ours}. Use the base that it was trained on."
            )
        self.folder, self.method, self._files = folder, files.method, files
        # A unified checkpoint also contains the base. Which of its weights were trained is unknown, but all are final.
        self._names = [*files.names(), *files.added]

    def names(self) -> list[str]:
        return self._names

    def read(self, name: str) -> np.ndarray:
        return self._files.read(name)


class MergedTensors:
    """The weights of a base with an adapter merged into them. Names, shapes and dtypes are the base's.

    Args:
        base: The base model.
        adapter: The adapter.

    Raises:
        UserError: If the adapter has tensors that fit no weight of the base, or lacks some.
    """

    def __init__(self, base: Source, adapter: _AdapterFolder | _AdapterCheckpoint) -> None:
        self._base: Tensors = base.tensors
        self._adapter, self._family, self._config = adapter, base.family.name, base.config
        own = set(adapter.names())
        self._layers = {name.removesuffix(".lora_A") for name in own if name.endswith(".lora_A")}
        self._retrained = {name for name in own if not name.rpartition(".")[2].startswith("lora_")}
        self._check(own)

    def names(self) -> list[str]:
        """Return the canonical names."""
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._base.shape(name)

    def dtype(self, name: str) -> str:
        """Return the stored type of a tensor."""
        return self._base.dtype(name)

    def read(self, name: str) -> np.ndarray:
        """Return the whole tensor, which must not be modified; bfloat16 as uint16 bits."""
        changes = self._changes_of(name)
        full = self._base.read(name)
        if not changes:
            return full
        changed, dtype = np.array(full), self._base.dtype(name)
        deltas: dict[str, tuple[np.ndarray, np.ndarray | None] | None] = {}
        for piece in changes:
            columns = (..., slice(piece.start, piece.stop))
            source_columns = (..., slice(piece.source_start, piece.source_start + piece.stop - piece.start))
            if piece.source in self._retrained:
                changed[columns] = _stored_as(widened(self._adapter.read(piece.source)[source_columns]), dtype)
            if piece.source not in deltas:
                deltas[piece.source] = self._delta(piece.source, dtype)
            found = deltas[piece.source]
            if found is not None:
                delta, magnitude = found
                merged = widened(changed[columns]) + delta[source_columns]
                if magnitude is not None:
                    merged = _with_magnitude(merged, magnitude[source_columns])
                changed[columns] = _stored_as(merged, dtype)
        return changed

    def _changes_of(self, name: str) -> list[Piece]:
        """Return the columns of a weight that the adapter changes. Their `source` is a name in the adapter."""
        width = self._base.shape(name)[-1]
        pieces = [Piece(0, width, name, 0), *fused_pieces(self._family, name, self._config)]
        return [
            piece
            for piece in pieces
            if piece.source in self._retrained or piece.source.removesuffix(".weight") in self._layers
        ]

    def _delta(self, name: str, dtype: str) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Return LoRA's addition to a weight [in, out] and DoRA's magnitudes [out] (None without DoRA), in fp32.

        The adapter's tensors are rounded to the dtype in which the network would hold them.
        """
        layer = name.removesuffix(".weight")
        if layer not in self._layers:
            return None
        a, b = (self._matrix(f"{layer}.{own}", dtype) for own in ("lora_A", "lora_B"))
        if f"{layer}.lora_E" in self._adapter.names():
            a = a * self._matrix(f"{layer}.lora_E", dtype)
        method = self._adapter.method
        scaling = method.scaling if method.name == "adalora" else method.scaling_of(layer)
        magnitude = self._matrix(f"{layer}.lora_magnitude", dtype).numpy() if method.dora else None
        return (paddle.matmul(a, b) * scaling).numpy(), magnitude

    def _matrix(self, name: str, dtype: str) -> paddle.Tensor:
        values = paddle.to_tensor(widened(self._adapter.read(name)), place=paddle.CPUPlace())
        return values.astype(dtype).astype("float32")

    # --- checks --------------------------------------------------------------------------------------------------

    def _check(self, own: set[str]) -> None:
        where = self._adapter.folder
        for name in sorted(self._retrained):
            self._check_fits(name, tuple(self._adapter.read(name).shape))
        method = self._adapter.method
        more = [*(["lora_E"] if method.name == "adalora" else []), *(["lora_magnitude"] if method.dora else [])]
        needed = ("lora_A", "lora_B", *more)
        tied = EMBEDDINGS[self._family].removesuffix(".weight")
        if tied in self._layers and is_tied(self._family, self._config):
            raise UserError(TIED_EMBEDDING.format(f"{where}, {tied}"))
        for layer in sorted(self._layers):
            missing = [suffix for suffix in needed if f"{layer}.{suffix}" not in own]
            if missing:
                raise UserError(f"{where} is incomplete: {layer}.{missing[0]} is missing. Copy the adapter again.")
            a, b = (self._adapter.read(f"{layer}.{suffix}").shape for suffix in ("lora_A", "lora_B"))
            self._check_fits(f"{layer}.weight", (a[0], b[1]))
        orphans = [name for name in own - self._retrained if name.rpartition(".")[0] not in self._layers]
        if orphans or not own:
            problem = f"it has {orphans[0]} but no LoRA matrices for it" if orphans else "it is empty"
            raise UserError(f"{where / ADAPTER_SAFETENSORS} is incomplete: {problem}. Copy the adapter again.")

    def _check_fits(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise UserError if the base has no weight of this name and shape, neither whole nor fused or split."""
        known, found = set(self._base.names()), None
        pieces = fused_pieces(self._family, name, self._config)
        if name in known:
            found = self._base.shape(name)
        elif pieces and all(piece.source in known for piece in pieces):
            found = (self._base.shape(pieces[0].source)[0], max(piece.stop for piece in pieces))
        if found is None:
            raise UserError(
                f"{self._adapter.folder} changes {name}, which the base does not have. Use the base that it was trained on."
            )
        if found != shape:
            raise UserError(
                f"{self._adapter.folder} changes {name} of shape {list(shape)}, but the base has shape {list(found)}. Use the base that it was trained on."
            )


def _stored_as(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round fp32 values to a dtype with Paddle's rounding."""
    return paddle.to_tensor(values, place=paddle.CPUPlace()).astype(dtype).numpy()


def _with_magnitude(merged: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Scale columns to DoRA's magnitudes, in fp32, as `peft.methods.dora` does."""
    values = paddle.to_tensor(merged, place=paddle.CPUPlace())
    norm = paddle.sqrt(paddle.square(values).sum(axis=0))
    return (paddle.to_tensor(magnitude, place=paddle.CPUPlace()) / norm * values).numpy()
