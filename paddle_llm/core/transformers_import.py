"""Import of the `transformers` library, which is used only for tokenizers and their chat templates.

If torch is installed, `import transformers` imports it (6 s, and a second CUDA runtime beside Paddle's). This package does not use
torch. The commands therefore hide torch from the import. In other programs torch is not hidden, because they may use torch models of
transformers later.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# Environment variable that the commands set and their child processes inherit.
WITHOUT_TORCH = "PADDLE_LLM_WITHOUT_TORCH"


def hide_torch_from_transformers() -> None:
    """Make this process and its child processes import transformers without torch."""
    os.environ.setdefault(WITHOUT_TORCH, "1")


def import_transformers() -> ModuleType:
    """Return the module `transformers`, imported on first use.

    Raises:
        ImportError: If it is not installed.
    """
    if "transformers" in sys.modules:
        return sys.modules["transformers"]
    changes = {"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    if os.environ.get(WITHOUT_TORCH) == "1" and "torch" not in sys.modules and "USE_TORCH" not in os.environ:
        changes |= {"USE_TORCH": "0", "USE_TF": "0", "USE_JAX": "0"}
    with _environment(changes):
        return importlib.import_module("transformers")


def repair_sentencepiece_proto() -> None:
    """Let transformers read sentencepiece models although the protobuf module of sentencepiece cannot be imported.

    sentencepiece 0.2.3 generates it with protobuf 7, which visualdl 2.5.3 does not support. transformers 4.55 has an older copy
    that it uses only if sentencepiece is not installed.
    """
    name = "sentencepiece.sentencepiece_model_pb2"
    try:
        importlib.import_module(name)
    except Exception:  # protobuf's VersionError
        import_transformers()
        copy = importlib.import_module("transformers.utils.sentencepiece_model_pb2_new")
        sys.modules[name] = copy
        sys.modules["sentencepiece"].sentencepiece_model_pb2 = copy  # type: ignore[attr-defined]


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
