"""What a folder that is named for an export holds, found out from its files alone: nothing here imports paddle, so that a
wrong folder is told in the first second."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_llm.checkpoint.folder import newest_complete
from paddle_llm.checkpoint.run_record import recorded_argument
from paddle_llm.config.local_files.weights import has_weights
from paddle_llm.config.model_facts import read_model_facts
from paddle_llm.core.artifacts import (
    ADAPTER_CONFIG,
    ADAPTER_SAFETENSORS,
    MANIFEST,
    MODEL_CONFIG,
    STATIC_STEP,
    TOKENIZER_CONFIG,
    TRAINER_STATE,
)
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.families.shape import find_family
from paddle_llm.peft.base import base_named_in, find_base, has_tokenizer, say_other_base, why_not_found

_OF_WEIGHTS = re.compile(r"(model|config\.json)")  # at the start of a file's name


@dataclass(frozen=True)
class Found:
    """The folders that an export reads.

    Attributes:
        model: of the weights: a model folder or a checkpoint.
        adapter: that is added to them, if any.
        tokenizer: with tokenizer_config.json, None where there is none.
    """

    model: Path
    adapter: Path | None
    tokenizer: Path | None


def find(folder: Path, *, adapter: Path | None = None, tokenizer: Path | None = None) -> Found:
    """See source.open_source, whose arguments these are.

    Raises:
        UserError: nothing that can be exported is there.
    """
    chosen = _choose(folder)
    if adapter is not None:
        adapter = _choose(adapter, wanted="adapter")
        if not _needs_base(adapter):
            raise UserError(f"--adapter {adapter} holds a whole model; an adapter's folder or checkpoint is expected")
        if _needs_base(chosen):
            raise UserError(f"{chosen} is an adapter itself: give --adapter with the folder of its base")
        _say_other_base(adapter, chosen)
    elif _needs_base(chosen):
        adapter, chosen = chosen, _base_of(chosen)
        say(f"{adapter} is an adapter: it is added to its base, {chosen}")
    _check_model(chosen)
    if adapter is not None and tokenizer is None and not has_tokenizer(adapter):
        return Found(chosen, adapter, _tokenizer_folder(None, (chosen,)))
    return Found(chosen, adapter, _tokenizer_folder(tokenizer, (adapter, chosen)))


def manifest_of_weights(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint of which the weights are whole; what a training alone reads (the optimizer's state) may
    be gone.

    Raises:
        UserError: a file of the weights is missing or has another size.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not a complete checkpoint: it has no {MANIFEST}")
    manifest = read_json_object(folder / MANIFEST)
    for name, size in (manifest.get("files") or {}).items():
        if not _OF_WEIGHTS.match(Path(name).name):
            continue
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            problem = f"{name} is missing" if found is None else f"{name} has {found} bytes, not {size}"
            raise UserError(f"{folder} is not a complete checkpoint: {problem}. Name another one")
    return manifest


def _choose(folder: Path, wanted: str = "model") -> Path:
    """The model folder, checkpoint or adapter that a folder is or holds."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder: give a model folder, the output folder of a run, or a checkpoint of it"
        )
    if any((folder / name).is_file() for name in (MANIFEST, ADAPTER_CONFIG, MODEL_CONFIG)):
        return folder
    for name in dict.fromkeys((wanted, "model", "adapter")):
        if (folder / name).is_dir():
            say(f"{folder} is the output of a run: {folder / name} is taken")
            return folder / name
    newest, passed_over = newest_complete(folder)
    if newest is None:
        raise UserError(_why_nothing(folder, passed_over))
    for line in [*passed_over, f"{folder} holds no finished model: {newest} is taken"]:
        say(line)
    return newest


def _why_nothing(folder: Path, passed_over: list[str]) -> str:
    if (folder / ADAPTER_SAFETENSORS).is_file():
        return (
            f"{folder} is an adapter's folder without its {ADAPTER_CONFIG}, which says what it is: copy that file, too"
        )
    signs = (MODEL_CONFIG, ADAPTER_CONFIG, MANIFEST, "model", "adapter")
    below = [*folder.iterdir(), *folder.glob("snapshots/*")]  # of a download cache
    inside = sorted(one for one in below if one.is_dir() and any((one / sign).exists() for sign in signs))
    meant = [f"did you mean {inside[0]}?"] if inside else []
    problem = (
        f"{folder} holds no config.json, no model/, no adapter/ and no complete checkpoint: nothing to export there."
    )
    return " ".join([problem, *passed_over, *meant])


def _check_model(folder: Path) -> None:
    """Raise UserError for what config.json and the names of the files tell already."""
    if (folder / STATIC_STEP).is_file():
        raise UserError(
            f"{folder} is a static export, whose weights are those of a program: export its source once more "
            "(export.json names it)"
        )
    find_family(read_model_facts(folder))
    if (folder / MANIFEST).is_file():
        return
    if not has_weights(folder) and not any(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{folder} holds a config.json and no weights (model.safetensors, model_state.pdparams, or either with an index): "
            "nothing to export there"
        )
    if re.fullmatch(r"checkpoint-\d+", folder.name) and (folder / TRAINER_STATE).is_file():
        say(f"{folder} has no {MANIFEST}, which lists the files of a complete checkpoint: it may not be one")


def _needs_base(folder: Path) -> bool:
    """Whether a folder holds what fine-tuning trained, and not the whole model."""
    if (folder / ADAPTER_CONFIG).is_file():
        return True
    if not (folder / MANIFEST).is_file():
        return False
    method = ((read_json_object(folder / MANIFEST).get("identity") or {}).get("method") or {}).get("name", "full")
    return method != "full"


def _base_of(adapter: Path) -> Path:
    """The model folder that an adapter was trained over, as its own files name it."""
    if (adapter / ADAPTER_CONFIG).is_file():
        name = base_named_in(read_json_object(adapter / ADAPTER_CONFIG))
    else:
        name = recorded_argument(adapter, "model_name_or_path")
    base = find_base(name, adapter) if name else None
    if base is not None:
        return _choose(base)
    problem = why_not_found(name, adapter) if name else f"{adapter} does not say over which model it was trained"
    raise UserError(f"{problem}: name its base, paddle-llm export BASE --adapter {adapter} ...")


def _say_other_base(adapter: Path, base: Path) -> None:
    """What `paddle-llm generate` says, too: an adapter fits every base of the same shape."""
    try:
        own = _base_of(adapter)
    except UserError:
        return
    say_other_base(str(own), adapter, base)


def _tokenizer_folder(named: Path | None, beside: tuple[Path | None, ...]) -> Path | None:
    if named is not None:
        if not (named / TOKENIZER_CONFIG).is_file():
            raise UserError(f"--tokenizer {named} has no tokenizer_config.json: it is no tokenizer's folder")
        return named
    return next((place for place in beside if place and (place / TOKENIZER_CONFIG).is_file()), None)
