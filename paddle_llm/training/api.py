"""Run a job from Python, for example in a notebook: `finetune("config.json", lora=True)`, in one process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llm.config.reader import resolve
from paddle_llm.config.run_config import Entry
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.parallel.process.determinism import is_deterministic
from paddle_llm.training.run import run

if TYPE_CHECKING:
    from paddle_llm.training.trainers.finetune_trainer import FinetuneTrainer
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer


def pretrain(config: str | Path | None = None, **fields: Any) -> PretrainTrainer:
    """Pretrain a model, as `run_pretrain.py CONFIG --field value ...` does.

    Args:
        config: JSON file; None for fields only.
        **fields: Fields of the configuration, by the names of their flags.

    Returns:
        The trainer, after training.

    Raises:
        UserError: If the configuration contains mistakes; the message lists all of them.
    """
    return _run("pretrain", config, fields)


def finetune(config: str | Path | None = None, **fields: Any) -> FinetuneTrainer:
    """Fine-tune a model, as `finetune_generation.py CONFIG --field value ...` does.

    Args:
        config: JSON file; None for fields only.
        **fields: Fields of the configuration, by the names of their flags.

    Returns:
        The trainer, after training.

    Raises:
        UserError: If the configuration contains mistakes; the message lists all of them.
    """
    return _run("finetune", config, fields)


def _run(entry: Entry, config: str | Path | None, fields: dict[str, Any]) -> Any:
    resolved = resolve([*([str(config)] if config else []), *_as_flags(fields)], world_size=1, entry=entry)
    for line in resolved.notices:
        say(line)
    settings = resolved.config
    is_imported = "paddle" in sys.modules
    if is_imported and settings.deterministic and settings.device != "cpu" and not is_deterministic():
        raise UserError(
            "--deterministic 1 has no effect after Paddle is imported. Restart Python and call this function first."
        )
    return run(resolved, entry)


def _as_flags(fields: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in fields.items():
        if value is not None:
            words += [f"--{name}", *(map(str, value) if isinstance(value, (list, tuple)) else [str(value)])]
    return words
