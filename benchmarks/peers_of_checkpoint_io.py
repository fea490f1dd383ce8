"""Other libraries that save and load a dictionary of tensors, for `checkpoint_io.py`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Peer(Protocol):
    """A library.

    Attributes:
        name: Name in the table.
        package: Distribution, for its version.
    """

    name: str
    package: str

    def take(self, tensors: dict[str, np.ndarray]) -> None:
        """Convert the tensors to those of the library; uint16 holds bfloat16."""
        ...

    def save(self, folder: Path) -> None:
        """Write the tensors to an existing folder and flush the files."""
        ...

    def load(self, folder: Path) -> None:
        """Read all tensors."""
        ...


class Safetensors:
    """The safetensors library with numpy."""

    name, package = "safetensors", "safetensors"

    def take(self, tensors: dict[str, np.ndarray]) -> None:
        self._tensors = tensors

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file(self._tensors, folder / "model.safetensors")
        _flush(folder)

    def load(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        load_file(folder / "model.safetensors")


class TorchCheckpoint:
    """Distributed checkpoints of torch, on one rank; they flush their files themselves."""

    name, package = "torch.distributed.checkpoint", "torch"

    def take(self, tensors: dict[str, np.ndarray]) -> None:
        import torch

        def converted(values: np.ndarray) -> Any:
            if values.dtype == np.uint16:
                return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(values)

        self._tensors = {key: converted(values) for key, values in tensors.items()}
        self._loaded = {key: torch.empty_like(value).zero_() for key, value in self._tensors.items()}

    def save(self, folder: Path) -> None:
        import torch.distributed.checkpoint as dcp

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(self._tensors, checkpoint_id=folder, no_dist=True)

    def load(self, folder: Path) -> None:
        import torch.distributed.checkpoint as dcp

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(self._loaded, checkpoint_id=folder, no_dist=True)


class Paddle:
    """`paddle.save`, with which PaddleNLP writes checkpoints."""

    name, package = "paddle.save", "paddlepaddle"

    def take(self, tensors: dict[str, np.ndarray]) -> None:
        import paddle

        self._tensors = {key: paddle.to_tensor(values) for key, values in tensors.items()}

    def save(self, folder: Path) -> None:
        import paddle

        paddle.save(self._tensors, str(folder / "model.pdparams"))
        _flush(folder)

    def load(self, folder: Path) -> None:
        import paddle

        paddle.load(str(folder / "model.pdparams"), return_numpy=True)


PEERS: dict[str, type[Peer]] = {"safetensors": Safetensors, "torch": TorchCheckpoint, "paddle": Paddle}


def _flush(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
