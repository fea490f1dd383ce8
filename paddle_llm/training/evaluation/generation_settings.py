"""The generation settings of a job: those of the model that it starts from, and what ends a text in its data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from paddle_llm.config.model_facts import find_model_folder
from paddle_llm.config.reader import Resolved
from paddle_llm.models.configuration.generation_settings import read_generation, settings_to_save


def settings_of(resolved: Resolved, stop_ids: Iterable[int]) -> dict[str, Any]:
    """What generation_config.json says beside the weights that the job saves.

    Args:
        stop_ids: the tokenizer's EOS, or the ends of the chat template's answers.

    Raises:
        UserError: If the generation_config.json of the start is not valid.
    """
    folder = find_model_folder(resolved.config.model_name_or_path)
    settings = {} if folder is None else read_generation(folder)
    assert resolved.facts is not None
    return settings_to_save(settings, resolved.facts.raw, stop_ids, resolved.facts.vocab_size)
