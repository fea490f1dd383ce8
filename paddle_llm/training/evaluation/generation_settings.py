"""The generation settings of a job: those of the model that it starts from, and the stop tokens of its data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from paddle_llm.config.local_files.model_folder import find_model_folder
from paddle_llm.families.facts import ModelFacts
from paddle_llm.models.configuration.generation_settings import read_generation, settings_to_save


def generation_settings(model: str, facts: ModelFacts, stop_ids: Iterable[int]) -> dict[str, Any]:
    """Return the content of the generation_config.json that the job saves beside its weights.

    Args:
        model: Folder or name of the model that the job starts from.
        facts: Facts of that model.
        stop_ids: EOS of the tokenizer, or the stop tokens of the chat template.

    Raises:
        UserError: If the generation_config.json of the model is not valid.
    """
    folder = find_model_folder(model)
    settings = {} if folder is None else read_generation(folder)
    return settings_to_save(settings, facts.raw, stop_ids, facts.vocab_size)
