"""The one import of the `transformers` library by the product: for tokenizers and their chat templates only.

With torch installed, `import transformers` imports torch (6 s, and a second CUDA runtime beside Paddle's). No code of this
package uses torch. In processes of the commands the import therefore hides torch; in a process of somebody else, who may use
torch models of transformers later, it does not.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Set by the commands, inherited by the processes that they start.
WITHOUT_TORCH = "PADDLE_LLM_WITHOUT_TORCH"


def hide_torch_from_transformers() -> None:
    """Let this process and those that it starts import transformers without torch."""
    os.environ.setdefault(WITHOUT_TORCH, "1")


def import_transformers() -> Any:
    """The module `transformers`, imported on first use.

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
    """Let transformers read a sentencepiece model where sentencepiece's own protobuf module cannot be imported.

    sentencepiece 0.2.3 generates it with protobuf 7, which visualdl 2.5.3 does not run with; transformers 4.55 brings an
    older copy and uses it only where sentencepiece is not installed.
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
