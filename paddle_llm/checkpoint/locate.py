"""Resolve the folder that a user names: a model, an adapter, a checkpoint or the output folder of a run.

Every command that takes such a folder resolves it here, so that all commands accept the same folders and report the
same messages. The module reads file names and small JSON files only. It imports neither Paddle nor torch, so a wrong
folder is reported within the first second.

============================  ==========================================================================================
caller                        functions
============================  ==========================================================================================
`paddle-llm export`           `locate_export_source`: model, adapter and tokenizer in one call
`paddle-llm generate`         `locate_model`, `locate_adapter`, `locate_tokenizer` (tokenizer_folder.py), `report_other_base`
`paddle-llm convert`          `locate_adapter`, `locate_base`; gives `peft.hugging_face.convert` the resolved `BaseModel`
`paddle-llm check-model`      `locate_base`
============================  ==========================================================================================

`peft` and `data` come before `checkpoint` in the import order: they receive resolved folders and resolve none. An
adapter's name for its base model is resolved by `locate_base` alone: `BaseModel.folder` is what a reader opens,
`BaseModel.name` what a writer stores, and `BaseModel.problem` the reason to report when a reader needs a folder and
none was found.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from paddle_llm.checkpoint.folder import method_of, newest_complete
from paddle_llm.checkpoint.run_record import recorded_argument
from paddle_llm.checkpoint.tokenizer_folder import locate_tokenizer
from paddle_llm.config.local_files.adapters import describe_folder
from paddle_llm.config.local_files.model_folder import find_model_folder, looks_local, read_model_facts
from paddle_llm.config.local_files.published_names import folder_like
from paddle_llm.config.local_files.weights import choose_weights, has_weights
from paddle_llm.core.artifacts import (
    ADAPTER_CONFIG,
    ADAPTER_FOLDER,
    ADAPTER_SAFETENSORS,
    MANIFEST,
    MODEL_CONFIG,
    MODEL_FOLDER,
    STATIC_STEP,
    TRAINER_STATE,
)
from paddle_llm.core.console import say
from paddle_llm.core.downloads import describe_other_layout
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.families.shape import find_family
from paddle_llm.peft.base import BaseModel


@dataclass(frozen=True)
class ModelFolders:
    """Folders that a command reads.

    Attributes:
        model: Model folder or checkpoint with the weights.
        adapter: Adapter folder or checkpoint that is added to the weights; None for a whole model.
        tokenizer: Folder that contains tokenizer_config.json; None if neither `adapter` nor `model` contains it.
    """

    model: Path
    adapter: Path | None = None
    tokenizer: Path | None = None


def locate_export_source(folder: Path, *, adapter: Path | None = None, tokenizer: Path | None = None) -> ModelFolders:
    """Locate everything that an export of `folder` reads.

    Args:
        folder: Model folder, adapter folder, checkpoint, or output folder of a run. An adapter is combined with the
            base that it names.
        adapter: Adapter folder, checkpoint of an adapter, or output folder of a run, to be added to `folder`.
        tokenizer: Tokenizer folder; by default the one beside the adapter, else the one beside the weights.

    Raises:
        UserError: If a folder does not contain what is needed, or its model family is not supported.
    """
    model = _locate_model_or_adapter(folder)
    if adapter is not None:
        adapter = locate_adapter(adapter, allow_checkpoint=True)
        if _needs_base(model):
            raise UserError(
                f"{model} is an adapter: --adapter {adapter} cannot be added to it. Give the folder of the base model instead of {model}."
            )
        report_other_base(adapter, model)
    elif _needs_base(model):
        adapter, model = model, _require_base(model)
        say(f"{adapter} is an adapter: adding it to its base model {model}.")
    _check_export_source(model)
    return ModelFolders(model, adapter, locate_tokenizer(model, adapter=adapter, named=tokenizer))


def locate_model(folder: Path) -> Path:
    """Return the model folder that `folder` is, or the `model/` of a run; weights must be present.

    Raises:
        UserError: If `folder` is an adapter, contains only checkpoints, or contains no model.
    """
    folder = folder.expanduser()
    _check_is_folder(folder, "a folder with config.json, weights and a tokenizer, or the output folder of a run")
    for adapter in (folder, folder / ADAPTER_FOLDER):
        if (adapter / ADAPTER_CONFIG).is_file() and not (folder / MODEL_FOLDER).is_dir():
            base = _base_in_config(adapter) or "BASE"
            raise UserError(f"{adapter} is an adapter, not a model. Give its base model: {base} --adapter {adapter}.")
    if (folder / MODEL_CONFIG).is_file():
        _check_weights(folder)
        return folder
    if (folder / MODEL_FOLDER / MODEL_CONFIG).is_file():
        return _part_of_run(folder, "model")
    newest, skipped = newest_complete(folder)
    if newest is not None:
        raise UserError(
            f"{folder} contains no finished model, only checkpoints. "
            f"Convert the newest one: paddle-llm export {newest} OUT --target hf."
        )
    raise UserError(_why_no_model(folder, skipped))


def locate_adapter(folder: Path, *, allow_checkpoint: bool = False) -> Path:
    """Return the adapter folder that `folder` is, or the `adapter/` of a run.

    Args:
        folder: Adapter folder or output folder of a run.
        allow_checkpoint: Whether a checkpoint of an adapter training is accepted, too; of an output folder without
            `adapter/` and `model/` the newest complete checkpoint.

    Raises:
        UserError: If `folder` contains no adapter.
    """
    folder = folder.expanduser()
    _check_is_folder(folder, "an adapter folder; a run writes one to OUTPUT/adapter")
    if (folder / ADAPTER_CONFIG).is_file():
        return folder
    if (folder / ADAPTER_FOLDER / ADAPTER_CONFIG).is_file():
        return _part_of_run(folder, "adapter")
    if allow_checkpoint:
        checkpoint = _checkpoint_in(folder)
        if checkpoint is not None and _needs_base(checkpoint):
            return checkpoint
    if (folder / ADAPTER_SAFETENSORS).is_file():
        raise UserError(_without_adapter_config(folder))
    contents = describe_folder(folder) or " A run writes one to OUTPUT/adapter."
    raise UserError(f"{folder} is not an adapter: it has no {ADAPTER_CONFIG}.{contents}")


def locate_base(adapter: Path, name: str | Path | None = None) -> BaseModel:
    """Locate the base model of an adapter.

    A relative path is tried from the working directory, then from the adapter's folder. Any other name is looked up in
    PaddleNLP's download cache. An output folder of a run stands for its `model/`.

    Args:
        adapter: Adapter folder, or checkpoint of an adapter training.
        name: Folder or published name that the user gave; by default the base that the adapter's files name.

    Returns:
        The base; `folder` is None where the name is unknown or the model is not on this machine.

    Raises:
        UserError: If `name` is written like a path and does not exist, or the adapter's files cannot be read.
    """
    is_requested = name is not None
    if name is not None:
        folder = Path(name).expanduser()
        if not os.path.isdir(folder) and looks_local(str(name)):
            raise UserError(f"--base {name} does not exist.{folder_like(str(name))} Give a model folder.")
        tried = [folder]
    else:
        name = _base_name(adapter)
        if not name:
            return BaseModel("", None, f"{adapter} does not name its base model")
        folder = Path(name).expanduser()
        tried = [folder] if folder.is_absolute() else [folder, adapter / folder]
    # os.path, because pathlib raises for a name that no file can have.
    found = next((path for path in tried if os.path.isdir(path)), None)
    if found is not None:
        found = _model_of_run(found)
        return BaseModel(os.path.abspath(found), found, is_requested=is_requested)
    try:
        found = find_model_folder(str(name))
    except UserError:
        found = None
    if found is not None:
        return BaseModel(str(name), found, is_requested=is_requested)
    paths = " and ".join(os.path.abspath(one) for one in tried)
    problem = f"base model {name} of adapter {adapter} was not found (tried {paths})"
    return BaseModel(str(name), None, problem, is_requested)


def report_other_base(adapter: Path, model: Path) -> None:
    """Report an adapter that is added to another base model than its own; later only shapes are compared."""
    own = locate_base(adapter)
    if own.name and (own.folder or Path(own.name)).resolve() != model.resolve():
        say(
            f"{adapter} was trained with base model {own.folder or own.name}, but is added to {model}. Only the shapes of the "
            "weights are compared; the result may be wrong."
        )


def _check_is_folder(folder: Path, expected: str) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give {expected}.")


def _locate_model_or_adapter(folder: Path) -> Path:
    """Return the model, adapter or checkpoint that `folder` is or contains; of a run, its model before its adapter."""
    folder = folder.expanduser()
    _check_is_folder(folder, "a model folder, the output folder of a run, or one of its checkpoints")
    if any((folder / name).is_file() for name in (MANIFEST, ADAPTER_CONFIG, MODEL_CONFIG)):
        return folder
    for part in ("model", "adapter"):
        if (folder / part).is_dir():
            return _part_of_run(folder, part)
    newest = _checkpoint_in(folder)
    if newest is None:
        raise UserError(_why_no_model(folder, newest_complete(folder)[1]))
    return newest


def _checkpoint_in(folder: Path) -> Path | None:
    """Return the checkpoint that `folder` is, or the newest complete one of a run without a model or adapter."""
    if (folder / MANIFEST).is_file():
        return folder
    if any((folder / name).exists() for name in (MODEL_CONFIG, "model", "adapter")):
        return None
    newest, skipped = newest_complete(folder)
    if newest is not None:
        for line in [*skipped, f"{folder} contains no finished model: using checkpoint {newest}."]:
            say(line)
    return newest


def _part_of_run(folder: Path, part: str) -> Path:
    say(f"{folder} is the output folder of a run: using {folder / part}.")
    return folder / part


def _model_of_run(folder: Path) -> Path:
    """Return the `model/` of a run's output folder; any other folder unchanged."""
    if not (folder / MODEL_CONFIG).is_file() and (folder / MODEL_FOLDER / MODEL_CONFIG).is_file():
        return _part_of_run(folder, "model")
    return folder


def _needs_base(folder: Path) -> bool:
    """Return whether a folder is an adapter or the checkpoint of an adapter training, instead of a whole model."""
    if (folder / ADAPTER_CONFIG).is_file():
        return True
    return (folder / MANIFEST).is_file() and method_of(folder) != "full"


def _require_base(adapter: Path) -> Path:
    base = locate_base(adapter)
    if base.folder is None:
        problem = base.problem[0].upper() + base.problem[1:]
        raise UserError(
            f"{problem}. Give the folder of the base model: paddle-llm export BASE --adapter {adapter} OUT."
        )
    return _locate_model_or_adapter(base.folder)


def _base_name(adapter: Path) -> str | None:
    if (adapter / ADAPTER_CONFIG).is_file():
        return _base_in_config(adapter)
    return recorded_argument(adapter, "model_name_or_path")


def _base_in_config(adapter: Path) -> str | None:
    """Return the base model that an adapter_config.json names, in this library's format or PEFT's."""
    file = adapter / ADAPTER_CONFIG
    config = read_json_object(file)
    name = config.get("base") or config.get("base_model_name_or_path") or None
    if name is not None and not isinstance(name, str):
        raise UserError(f"{file}: the base model is not a string: {name!r}. Write the folder or the name of the base.")
    return name


def _check_weights(folder: Path) -> None:
    """Raise UserError if a model folder has no weights. Torch pickles pass: the loader has its own message for them."""
    if not has_weights(folder) and not any(folder.glob("*.bin")):
        choose_weights(folder)


def _check_export_source(folder: Path) -> None:
    """Check config.json and the file names of an export's source, without reading tensors."""
    if (folder / STATIC_STEP).is_file():
        raise UserError(
            f"{folder} is a static export: its weights are stored in the layout of the program. "
            "Export the original model again (export.json names it)."
        )
    find_family(read_model_facts(folder))
    if (folder / MANIFEST).is_file():
        return
    if any(folder.glob("model_state.tp*.pdparams")):
        raise UserError(f"{folder} is not a complete checkpoint: it has no {MANIFEST}. Choose another checkpoint.")
    _check_weights(folder)
    if re.fullmatch(r"checkpoint-\d+", folder.name) and (folder / TRAINER_STATE).is_file():
        say(f"{folder} has no {MANIFEST}: the checkpoint may be incomplete.")


def _without_adapter_config(folder: Path) -> str:
    return f"{folder} is an incomplete adapter: it has {ADAPTER_SAFETENSORS} but no {ADAPTER_CONFIG}. Copy {ADAPTER_CONFIG} to it, too."


def _why_no_model(folder: Path, skipped: list[str]) -> str:
    """Return the message for a folder without a model, with skipped checkpoints and a folder to use instead."""
    if (folder / ADAPTER_SAFETENSORS).is_file():
        return _without_adapter_config(folder)
    typical = (MODEL_CONFIG, ADAPTER_CONFIG, MANIFEST, "model", "adapter")
    below = [path for path in [*folder.iterdir(), *folder.glob("snapshots/*")] if path.is_dir()]
    likely = sorted(path for path in below if any((path / name).exists() for name in typical))
    hint = describe_other_layout(folder) or (f" Did you mean {likely[0]}?" if likely else "")
    problem = f"{folder} contains no model: it has no {MODEL_CONFIG}, model/, adapter/ or complete checkpoint."
    return " ".join([problem, *skipped]) + (hint or " Give a model folder or the output folder of a run.")
