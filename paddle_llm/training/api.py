"""A job in the Python that calls it, a notebook for instance: `finetune("config.json", lora=True)`, one process."""

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
    """What `run_pretrain.py CONFIG --field value ...` does; returns the trainer that has trained.

    Raises:
        UserError: every mistake of the configuration, in one message.
    """
    return _run("pretrain", config, fields)


def finetune(config: str | Path | None = None, **fields: Any) -> FinetuneTrainer:
    """What `finetune_generation.py CONFIG --field value ...` does; returns the trainer that has trained.

    Raises:
        UserError: every mistake of the configuration, in one message.
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
            "--deterministic 1 has no effect after paddle is imported: restart Python and call this function first."
        )
    return run(resolved, entry)


def _as_flags(fields: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in fields.items():
        if value is not None:
            words += [f"--{name}", *(map(str, value) if isinstance(value, (list, tuple)) else [str(value)])]
    return words
