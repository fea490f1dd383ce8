"""Read checkpoints of version 0.2 and earlier, which PaddleNLP wrote as pickles, without running code from them."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from unittest import mock

from paddle_llm.core.errors import UserError

# Names that these files contain: numpy's arrays, and the state of Paddle's random numbers.
_ALLOWED = {
    *((f"numpy.{module}.multiarray", name) for module in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("paddle.base.libpaddle", "GeneratorState"),
}


class _Unpickler(pickle.Unpickler):
    """An unpickler that makes arrays, numbers, strings and containers only."""

    def __init__(self, stream: BinaryIO, **options: Any) -> None:
        super().__init__(stream, **options)
        self._name = getattr(stream, "name", "a pickle")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            # Not an UnpicklingError, after which Paddle tries another format.
            raise UserError(
                f"{self._name} is refused: it names {module}.{name}, which no checkpoint needs. Resume from another one with "
                "--resume_from_checkpoint."
            )
        return OrderedDict if name == "OrderedDict" else super().find_class(module, name)


@contextmanager
def restricted_pickles(folder: str | Path) -> Iterator[None]:
    """Let `paddle.load` read arrays, numbers, strings and containers only.

    Paddle (3.3.1) calls `pickle.load` for every file, which runs any function that the file names.

    Args:
        folder: The checkpoint, for the message.

    Raises:
        UserError: If a file is damaged or contains something else.
    """
    from paddle.framework import io

    def load(stream: BinaryIO, **options: Any) -> Any:
        return _Unpickler(stream, **options).load()

    replacement = SimpleNamespace(**{**vars(pickle), "load": load})
    try:
        with mock.patch.object(io, "pickle", replacement):
            yield
    except (ValueError, EOFError, IndexError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{folder}: a file of this checkpoint is damaged ({str(error).rstrip('.')}). Resume from an older one with "
            "--resume_from_checkpoint."
        ) from error
