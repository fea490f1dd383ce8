"""Which folders `paddle-llm generate` reads: the model of a run where its output is named; told before paddle is imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from paddle_llm.checkpoint.folder import newest_complete
from paddle_llm.config.local_files.published_names import folder_like, why_unknown
from paddle_llm.config.local_files.weights import choose_weights, has_weights
from paddle_llm.config.model_facts import looks_local
from paddle_llm.core.artifacts import ADAPTER_CONFIG, ADAPTER_FOLDER, MODEL_CONFIG, MODEL_FOLDER, TOKENIZER_CONFIG
from paddle_llm.core.console import say
from paddle_llm.core.downloads import other_layout
from paddle_llm.core.errors import UserError
from paddle_llm.generation.static_network import is_static, read_step
from paddle_llm.peft.base import adapter_folder, base_named_in, has_tokenizer, read_described
from paddle_llm.peft.hugging_face.config import check_settings
from paddle_llm.peft.hugging_face.format import is_peft


def check_folders(folder: Path, options: dict[str, Any]) -> Path:
    """The model's folder.

    Args:
        options: of the command; the adapter's folder is put there, too.

    Raises:
        UserError: a folder that cannot be, or an option that is not for it.
    """
    _check_static(folder, options)
    if not options["static"]:
        folder = _model_folder(folder)
    _check_tokenizer(folder, options["tokenizer"])
    if options["adapter"]:
        options["adapter"] = adapter_folder(options["adapter"].expanduser())
        described = read_described(options["adapter"])
        if is_peft(described):  # refused before paddle and the model are loaded
            check_settings(options["adapter"], described)
        if options["tokenizer"] is None and has_tokenizer(options["adapter"]):
            options["tokenizer"] = options["adapter"]
            say(f"tokenizer: the one beside the adapter, {options['adapter']}")
    return folder


def _check_static(folder: Path, options: dict[str, Any]) -> None:
    """Raise UserError where --static and the folder do not fit, or an option is not for a static export."""
    if not options["static"]:
        if is_static(folder):
            raise UserError(f"{folder} is a static export: add --static to run it")
        return
    read_step(folder)
    ranks = os.environ.get("PADDLE_TRAINERS_NUM", "1")
    refused = [
        (options["adapter"], "--adapter", "a program's weights are fixed: export the model with its --adapter"),
        (options["device"] == "gpu", "--device gpu", "it computes on the CPU: leave it out"),
        (options["allow_pickle"], "--allow_pickle", "it has no pickles: leave it out"),
        (int(ranks) > 1, f"a launch of {ranks} ranks", "it is not split over ranks: run it in one process"),
    ]
    for asked, name, reason in refused:
        if asked:
            raise UserError(f"{name} with a static export ({folder}): {reason}")


def _model_folder(folder: Path) -> Path:
    """The model that a folder is, or that the output folder of a run holds, which is said.

    Raises:
        UserError: there is none, with what is there instead.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one with config.json, weights and a tokenizer")
    for adapter in (folder, folder / ADAPTER_FOLDER):
        if (adapter / ADAPTER_CONFIG).is_file() and not (folder / MODEL_FOLDER).is_dir():
            base = base_named_in(read_described(adapter)) or "BASE"
            raise UserError(f"{adapter} is an adapter: paddle-llm generate {base} --adapter {adapter} ...")
    if (folder / MODEL_CONFIG).is_file():
        if not has_weights(folder) and not any(folder.glob("*.bin")):  # torch's: the loader has more to say of those
            choose_weights(folder)  # raises with what the folder holds in their place
        return folder
    if (folder / MODEL_FOLDER / MODEL_CONFIG).is_file():
        say(f"{folder} is the output of a run: {folder / 'model'} is taken")
        return folder / MODEL_FOLDER
    newest, _ = newest_complete(folder)
    if newest is not None:
        raise UserError(
            f"{folder} holds no finished model; its newest checkpoint becomes one by: paddle-llm export {newest} OUT --target hf"
        )
    raise UserError(f"{folder} has no config.json: it is no model's folder.{other_layout(folder)}")


def _check_tokenizer(folder: Path, tokenizer: Path | None) -> None:
    """Raise UserError where there is no tokenizer: `tokenizer`, or that of the model's folder."""
    if tokenizer is None:
        if not (folder / TOKENIZER_CONFIG).is_file():
            raise UserError(f"{folder} has no {TOKENIZER_CONFIG}; name the folder of the tokenizer with --tokenizer")
    elif tokenizer.is_dir() and not (tokenizer / TOKENIZER_CONFIG).is_file():
        raise UserError(f"--tokenizer {tokenizer} has no {TOKENIZER_CONFIG}: it is no tokenizer's folder")
    elif not tokenizer.is_dir():
        if problem := why_unknown(str(tokenizer)):
            raise UserError(f"--tokenizer {tokenizer}: {problem}")
        if looks_local(str(tokenizer)):
            raise UserError(f"--tokenizer {tokenizer}: there is no such folder.{folder_like(str(tokenizer))}")
