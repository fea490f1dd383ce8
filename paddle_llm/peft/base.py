"""Which adapter a folder is, and over which model it stands: the name that its files give, the folder which that is here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from paddle_llm.config.local_files.adapters import what_it_holds
from paddle_llm.config.model_facts import find_model_folder
from paddle_llm.core.artifacts import (
    ADAPTER_CONFIG,
    ADAPTER_FOLDER,
    ADAPTER_SAFETENSORS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
)
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object


def adapter_folder(folder: Path) -> Path:
    """The adapter that a folder is, or that the output folder of a run holds, which is said.

    Raises:
        UserError: it is and holds none.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return folder
    if (folder / ADAPTER_FOLDER / ADAPTER_CONFIG).is_file():
        say(f"{folder} is the output of a run: {folder / 'adapter'} is taken")
        return folder / ADAPTER_FOLDER
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; an adapter's is expected (a run writes one to OUTPUT/adapter)")
    if (folder / ADAPTER_SAFETENSORS).is_file():
        raise UserError(
            f"{folder} has {ADAPTER_SAFETENSORS} and no {ADAPTER_CONFIG}: the adapter is not complete, fetch that file, too"
        )
    below = what_it_holds(folder) or " A run writes one to OUTPUT/adapter."
    raise UserError(f"{folder} has no {ADAPTER_CONFIG}, so it is not an adapter.{below}")


def read_described(folder: Path) -> dict[str, Any]:
    """adapter_config.json, this library's or PEFT's.

    Raises:
        UserError: there is none, or it is no table.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        raise UserError(f"{folder} has no {ADAPTER_CONFIG}: it is no adapter of this library")
    return read_json_object(file)


def base_named_in(described: dict[str, Any]) -> str | None:
    """What an adapter_config.json calls its base, this library's or PEFT's.

    Raises:
        UserError: If the name of the base is not text.
    """
    named = described.get("base") or described.get("base_model_name_or_path") or None
    if named is not None and not isinstance(named, str):
        raise UserError(
            f"{ADAPTER_CONFIG}: the base model is {named!r}. Write the folder or the name of the base as text."
        )
    return named


def lasting_name(base: str, adapter: Path | None = None) -> str:
    """A base's name as an adapter keeps it: a folder by its absolute path, which is true wherever one calls from; a
    name such as facebook/llama-7b as it is.

    Args:
        adapter: the folder that gives the name, which may be a path from there.
    """
    folder = _folder(base, adapter) if base else None
    return base if folder is None else os.path.abspath(folder)


def find_base(name: str, adapter: Path) -> Path | None:
    """The folder of an adapter's base: a path from here, or else from the adapter's own folder; a built-in name that
    PaddleNLP has downloaded. None: it is not here."""
    try:
        return _folder(name, adapter) or find_model_folder(name)
    except UserError:
        return None


def why_not_found(name: str, adapter: Path) -> str:
    """What to say where `find_base` finds none; of a relative path both places."""
    places = [os.path.abspath(place) for place in _places(name, adapter)]
    tried = f" (neither {places[0]} nor {places[1]} is a folder)" if len(places) > 1 else ""
    return f"{adapter} was trained over {name}, which is not here{tried}"


def say_other_base(name: str, adapter: Path, base: Path) -> None:
    """An adapter fits every base of the same shape: tell whoever puts it over another one than its own."""
    own = find_base(name, adapter)
    if (own or Path(name)).resolve() != base.resolve():
        say(f"{adapter} was trained over {own or name}; its shape fits {base}, whose weights may be others")


def has_tokenizer(adapter: Path) -> bool:
    """Whether a tokenizer is beside an adapter, which then goes before the base's. One that cannot be read is reported."""
    if (adapter / TOKENIZER_CONFIG).is_file():
        return True
    if (adapter / TOKENIZER_JSON).is_file():
        say(f"{adapter} has a tokenizer.json without tokenizer_config.json: the base's tokenizer is used")
    return False


def _folder(name: str, adapter: Path | None) -> Path | None:
    # os.path, since pathlib raises for a name that no file can have.
    return next((place for place in _places(name, adapter) if os.path.isdir(place)), None)


def _places(name: str, adapter: Path | None) -> list[Path]:
    here = Path(name).expanduser()
    return [here] if here.is_absolute() or adapter is None else [here, adapter / here]
