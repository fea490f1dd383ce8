"""Locate the tokenizer of a model that is read from disk; the part of `locate.py` that concerns tokenizers."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.config.local_files.model_folder import looks_local
from paddle_llm.config.local_files.published_names import folder_like, why_unknown
from paddle_llm.core.artifacts import TOKENIZER_CONFIG, TOKENIZER_JSON
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError


def locate_tokenizer(
    model: Path,
    *,
    adapter: Path | None = None,
    named: Path | None = None,
    allow_published_name: bool = False,
    required: bool = False,
) -> Path | None:
    """Return the tokenizer to use: the named one, else the one beside the adapter, else the one beside the weights.

    Args:
        model: Model folder.
        adapter: Adapter folder.
        named: Value of --tokenizer.
        allow_published_name: Whether `named` may be a name that PaddleNLP knows instead of a folder.
        required: Whether a missing tokenizer is an error.

    Raises:
        UserError: If `named` is not a tokenizer, or no tokenizer is found and `required` is true.
    """
    if named is not None:
        named = named.expanduser()
        _check_named_tokenizer(named, allow_published_name)
        return named
    if adapter is not None and has_tokenizer(adapter):
        return adapter
    if (model / TOKENIZER_CONFIG).is_file():
        return model
    if required:
        raise UserError(f"{model} has no {TOKENIZER_CONFIG}. Give a tokenizer folder with --tokenizer.")
    return None


def has_tokenizer(adapter: Path) -> bool:
    """Return whether an adapter folder contains a tokenizer; report one that is incomplete and therefore not used."""
    if (adapter / TOKENIZER_CONFIG).is_file():
        return True
    if (adapter / TOKENIZER_JSON).is_file():
        say(f"{adapter} has a tokenizer.json but no {TOKENIZER_CONFIG}: using the tokenizer of the base model.")
    return False


def _check_named_tokenizer(tokenizer: Path, allow_published_name: bool) -> None:
    if tokenizer.is_dir() or not allow_published_name:
        if not (tokenizer / TOKENIZER_CONFIG).is_file():
            raise UserError(f"--tokenizer {tokenizer} has no {TOKENIZER_CONFIG}. Give a tokenizer folder.")
        return
    if problem := why_unknown(str(tokenizer)):
        raise UserError(f"--tokenizer {tokenizer}: {problem}")
    if looks_local(str(tokenizer)):
        raise UserError(
            f"--tokenizer {tokenizer} does not exist.{folder_like(str(tokenizer))} Give a tokenizer folder."
        )
