"""An adapter added to the weights of its base, one tensor at a time: bit for bit what `peft.merge` makes of the network.

What can be added is LoRA, rsLoRA and AdaLoRA, and weights of the base that were trained themselves (--modules_to_save,
--freeze_layers). It comes from an adapter's folder (ours, or Hugging Face PEFT's) or from the checkpoint of such a run. Where
one of both keeps query, key and value in one matrix and the other does not, columns go where they belong.

Memory: of a merged weight four times its size in fp32, one weight at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import paddle

from paddle_llm.config.methods import METHODS
from paddle_llm.core.artifacts import ADAPTER_SAFETENSORS, MANIFEST
from paddle_llm.core.errors import UserError
from paddle_llm.export.source.dtypes import widened
from paddle_llm.export.source.sharded_checkpoint import LayoutFiles
from paddle_llm.models.weights.names import EMBEDDINGS, Piece, compositions, is_tied
from paddle_llm.peft.merge import TIED_EMBEDDING
from paddle_llm.peft.method import Method
from paddle_llm.peft.save import base_shape, open_tensors, read_method

if TYPE_CHECKING:
    from paddle_llm.export.source.source import Source, Tensors


def merge_adapter(base: Source, folder: Path, *, allow_pickle: bool = False) -> Merged:
    """The weights of `base` with an adapter added.

    Args:
        folder: an adapter's (ours or PEFT's), or a checkpoint of a run that trained one.
        allow_pickle: whether to read PEFT's adapter_model.bin.

    Raises:
        UserError: a method that cannot be added to weights; an adapter of another base; an incomplete one.
    """
    adapter = _Checkpoint(folder, base) if (folder / MANIFEST).is_file() else _Folder(folder, base, allow_pickle)
    if not METHODS[adapter.method.name].mergeable and adapter.method.name != "freeze":
        raise UserError(
            f"{folder} was trained by {adapter.method.name}, which adds a computation to the network that no weight of it can "
            "stand for: it cannot be exported. Answer with it by `paddle-llm generate --adapter`, or train by LoRA."
        )
    return Merged(base, adapter)


class _Folder:
    """An adapter's tensors in a folder of their own."""

    def __init__(self, folder: Path, base: Source, allow_pickle: bool):
        self.folder, shape = folder, base_shape(base.family.name, base.config)
        self.method: Method = read_method(folder, base=shape, allow_pickle=allow_pickle)
        ndims = {name: len(base.shapes[name]) for name in base.names()}
        self._files = open_tensors(folder, base.family.name, ndims, base.config, allow_pickle=allow_pickle)

    def names(self) -> list[str]:
        return self._files.names()

    def read(self, name: str) -> np.ndarray:
        """As it is stored; bfloat16 as its bits in uint16."""
        return self._files.view(name)


class _Checkpoint:
    """The same in a checkpoint."""

    def __init__(self, folder: Path, base: Source):
        files = LayoutFiles(folder)
        if files.method is None:
            raise UserError(f"{folder} holds a whole network and no adapter: export it as it is")
        ours, theirs = base_shape(base.family.name, base.config), base_shape(files.family.name, files.config)
        if ours != theirs:
            raise UserError(f"the adapter in {folder} was trained on another base ({theirs}); {base.folder} is {ours}")
        self.folder, self.method, self._files = folder, files.method, files
        # A unified checkpoint has the base, too; what was trained of it cannot be told, and all of it is right.
        self._names = [*files.names(), *files.added]

    def names(self) -> list[str]:
        return self._names

    def read(self, name: str) -> np.ndarray:
        return self._files.read(name)


class Merged:
    """The weights of a base with what an adapter changes. The names, shapes and dtypes are the base's.

    Raises:
        UserError: the adapter has tensors that fit no weight of the base, or lacks some.
    """

    def __init__(self, base: Source, adapter: _Folder | _Checkpoint):
        self._base: Tensors = base.tensors
        self._adapter, self._family, self._config = adapter, base.family.name, base.config
        own = set(adapter.names())
        self._layers = {name.removesuffix(".lora_A") for name in own if name.endswith(".lora_A")}
        self._retrained = {name for name in own if not name.rpartition(".")[2].startswith("lora_")}
        self._check(own)

    def names(self) -> list[str]:
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def dtype(self, name: str) -> str:
        return self._base.dtype(name)

    def read(self, name: str) -> np.ndarray:
        """The whole tensor, not to be written to; bfloat16 as its bits in uint16."""
        touched = self._touched(name)
        full = self._base.read(name)
        if not touched:
            return full
        changed, dtype = np.array(full), self._base.dtype(name)
        deltas: dict[str, tuple[np.ndarray, np.ndarray | None] | None] = {}
        for piece in touched:
            here = (..., slice(piece.start, piece.stop))
            there = (..., slice(piece.source_start, piece.source_start + piece.stop - piece.start))
            if piece.source in self._retrained:
                changed[here] = _stored_as(widened(self._adapter.read(piece.source)[there]), dtype)
            if piece.source not in deltas:
                deltas[piece.source] = self._delta(piece.source, dtype)
            found = deltas[piece.source]
            if found is not None:
                delta, magnitude = found
                merged = widened(changed[here]) + delta[there]
                if magnitude is not None:
                    merged = _of_magnitude(merged, magnitude[there])
                changed[here] = _stored_as(merged, dtype)
        return changed

    def _touched(self, name: str) -> list[Piece]:
        """Which columns of a weight the adapter changes, and under which name it knows them."""
        width = self._base.shape(name)[-1]
        pieces = [Piece(0, width, name, 0), *compositions(self._family, name, self._config)]
        return [
            piece
            for piece in pieces
            if piece.source in self._retrained or piece.source.removesuffix(".weight") in self._layers
        ]

    def _delta(self, name: str, dtype: str) -> tuple[np.ndarray, np.ndarray | None] | None:
        """What LoRA adds to a weight [in, out], and DoRA's magnitudes [out], in fp32.

        The adapter's tensors are rounded as the network would hold them.
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

    # --- does it fit ---------------------------------------------------------------------------------------------

    def _check(self, own: set[str]) -> None:
        where = self._adapter.folder
        for name in sorted(self._retrained):
            self._fits(name, tuple(self._adapter.read(name).shape))
        method = self._adapter.method
        more = [*(["lora_E"] if method.name == "adalora" else []), *(["lora_magnitude"] if method.dora else [])]
        needed = ("lora_A", "lora_B", *more)
        tied = EMBEDDINGS[self._family].removesuffix(".weight")
        if tied in self._layers and is_tied(self._family, self._config):
            raise UserError(TIED_EMBEDDING.format(f"{where}, {tied}"))
        for layer in sorted(self._layers):
            lacking = [one for one in needed if f"{layer}.{one}" not in own]
            if lacking:
                raise UserError(f"{where} lacks {layer}.{lacking[0]}: it is not complete")
            a, b = (self._adapter.read(f"{layer}.{one}").shape for one in ("lora_A", "lora_B"))
            self._fits(f"{layer}.weight", (a[0], b[1]))
        orphans = [name for name in own - self._retrained if name.rpartition(".")[0] not in self._layers]
        if orphans or not own:
            raise UserError(
                f"{where / ADAPTER_SAFETENSORS} is not complete: {f'{orphans[0]} stands alone' if orphans else 'empty'}"
            )

    def _fits(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise UserError unless the base has a weight of this name and shape, alone, in parts or as a part of one."""
        known, found = set(self._base.names()), None
        pieces = compositions(self._family, name, self._config)
        if name in known:
            found = self._base.shape(name)
        elif pieces and all(piece.source in known for piece in pieces):
            found = (self._base.shape(pieces[0].source)[0], max(piece.stop for piece in pieces))
        if found is None:
            raise UserError(f"{self._adapter.folder} changes {name}, which its base does not have")
        if found != shape:
            raise UserError(f"{self._adapter.folder} changes {name} of {list(shape)}; its base has {list(found)}")


def _stored_as(values: np.ndarray, dtype: str) -> np.ndarray:
    """fp32 rounded to a dtype, as Paddle does it."""
    return paddle.to_tensor(values, place=paddle.CPUPlace()).astype(dtype).numpy()


def _of_magnitude(merged: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """DoRA: columns scaled to these norms, in fp32, as `peft.dora` does it."""
    values = paddle.to_tensor(merged, place=paddle.CPUPlace())
    norm = paddle.sqrt(paddle.square(values).sum(axis=0))
    return (paddle.to_tensor(magnitude, place=paddle.CPUPlace()) / norm * values).numpy()
