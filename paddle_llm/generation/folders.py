"""Resolves the folders of `paddle-llm generate`, so that a wrong one is reported before Paddle is imported."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from paddle_llm.checkpoint.locate import locate_adapter, locate_model
from paddle_llm.checkpoint.tokenizer_folder import locate_tokenizer
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.generation.options import GenerateOptions
from paddle_llm.generation.static.program import is_static, read_description
from paddle_llm.peft.adapter_files import read_adapter_config
from paddle_llm.peft.hugging_face.config import check_settings
from paddle_llm.peft.hugging_face.format import is_peft


def resolve_folders(folder: Path, options: GenerateOptions) -> tuple[Path, GenerateOptions]:
    """Resolve the model folder, and the adapter and tokenizer folders in the options.

    Raises:
        UserError: If a folder does not contain what is needed, or an option does not apply to it.
    """
    folder = folder.expanduser()
    _check_static(folder, options)
    if not options.static:
        folder = locate_model(folder)
    adapter = options.adapter
    if adapter is not None:
        adapter = locate_adapter(adapter)
        settings = read_adapter_config(adapter)
        if is_peft(settings):  # report an unsupported setting before Paddle and the model are loaded
            check_settings(adapter, settings)
    tokenizer = locate_tokenizer(
        folder, adapter=adapter, named=options.tokenizer, allow_published_name=True, required=True
    )
    if options.tokenizer is None:
        tokenizer = adapter if tokenizer == adapter else None  # None: the model's own
        if tokenizer is not None:
            say(f"tokenizer: read from the adapter folder {adapter}")
    return folder, replace(options, adapter=adapter, tokenizer=tokenizer)


def _check_static(folder: Path, options: GenerateOptions) -> None:
    """Raise UserError if --static does not fit the folder, or an option does not apply to a static export."""
    if not options.static:
        if is_static(folder):
            raise UserError(f"{folder} is a static export. Add --static to run it.")
        return
    read_description(folder)
    ranks = os.environ.get("PADDLE_TRAINERS_NUM", "1")
    refused = [
        (options.adapter, "--adapter", "its weights are fixed. Export the model with its --adapter"),
        (options.device == "gpu", "--device gpu", "it runs on the CPU. Drop the option"),
        (options.allow_pickle, "--allow_pickle", "it contains no pickles. Drop the option"),
        (int(ranks) > 1, f"a launch of {ranks} ranks", "it cannot be split over ranks. Run it in one process"),
    ]
    for is_given, name, reason in refused:
        if is_given:
            raise UserError(f"{name} does not apply to the static export {folder}: {reason}.")
