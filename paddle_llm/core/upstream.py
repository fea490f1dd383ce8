"""Replace attributes of modules and classes of Paddle and PaddleNLP, each once and from one file.

Two replacements of one attribute would depend on their order. `replace` therefore refuses a second one: a file that
changes an attribute in several ways composes the functions and replaces it once.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Replacement:
    """One replaced attribute.

    Attributes:
        target: The attribute, as "module:Class.attribute" or "module:attribute".
        file: File that replaces it, relative to the package.
        why: Reason: what upstream does.
    """

    target: str
    file: str
    why: str


REPLACEMENTS: dict[str, Replacement] = {}
_PACKAGE = Path(__file__).parents[1]


def replace(owner: ModuleType | type, name: str, value: object, why: str) -> None:
    """Set an attribute of a module or class of Paddle or PaddleNLP.

    Args:
        owner: The module or class.
        name: Name of the attribute.
        value: New value.
        why: Reason, one sentence.
    """
    _record(owner, name, why)
    setattr(owner, name, value)


def replace_forward(network: type, forward: Callable[..., Any], why: str) -> None:
    """Set `forward` of a network without PaddleNLP's metaclass.

    The metaclass removes `return_dict`, `output_attentions` and `output_hidden_states` from every call of a replacement
    whose signature does not name them, and warns.

    Args:
        network: Class of PaddleNLP.
        forward: New method.
        why: Reason, one sentence.
    """
    _record(network, "forward", why)
    type.__setattr__(network, "forward", forward)


def remove(owner: type, name: str, why: str) -> None:
    """Delete an attribute of a class of PaddleNLP.

    Args:
        owner: The class.
        name: Name of the attribute.
        why: Reason, one sentence.
    """
    _record(owner, name, why)
    delattr(owner, name)


def _record(owner: ModuleType | type, name: str, why: str) -> None:
    target = (
        f"{owner.__name__}:{name}" if inspect.ismodule(owner) else f"{owner.__module__}:{owner.__qualname__}.{name}"
    )
    # inspect.stack() reads the source of every frame and searches all modules, which takes a second in each rank.
    file = _relative(Path(sys._getframe(2).f_code.co_filename))
    if target in REPLACEMENTS:
        raise RuntimeError(
            f"{target} is replaced by {REPLACEMENTS[target].file} and by {file}. Compose the two functions in one file."
        )
    REPLACEMENTS[target] = Replacement(target, file, why)


def _relative(file: Path) -> str:
    return file.relative_to(_PACKAGE).as_posix() if file.is_relative_to(_PACKAGE) else file.name
