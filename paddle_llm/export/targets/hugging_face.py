"""The target `hf`: a folder that transformers loads, for ChatGLM and GLM with the code of their authors."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np

from paddle_llm.core.artifacts import MODEL_CONFIG
from paddle_llm.core.console import say
from paddle_llm.data.tokenizers.conversion.tokenizer_json import write_tokenizer
from paddle_llm.export.options import Options
from paddle_llm.export.source.dtypes import ITEM_SIZES
from paddle_llm.export.source.source import Source
from paddle_llm.export.targets.serving_files import write_chat_template, write_generation_config
from paddle_llm.export.targets.shard_writer import PlannedTensor, write_shards
from paddle_llm.models.configuration.to_hugging_face import hugging_face_config
from paddle_llm.models.weights.names import hugging_face


def write_hf(source: Source, staged: Path, options: Options) -> None:
    """Write the folder: weights, config.json, tokenizer, generation_config.json.

    A tied head is stored once, as the embedding.

    Raises:
        UserError: If the configuration has a setting that Hugging Face's network does not support.
    """
    write_config(source, staged, options)
    write_text_files(source, staged, "hf")
    write_weights(source, staged, options)
    repository = source.family.config_json.code_repository
    if repository:
        say(
            f"{source.family.title}: transformers loads it with the authors' code, which is not part of the export. Copy the "
            f"configuration_*.py and modeling_*.py of {repository} into the folder, and load it with trust_remote_code=True."
        )


def write_text_files(source: Source, staged: Path, target: str) -> None:
    """Write the tokenizer, the chat template and generation_config.json."""
    write_tokenizer(source, staged, target)
    write_chat_template(source, staged)
    write_generation_config(source, staged)


def write_weights(source: Source, staged: Path, options: Options) -> None:
    """Write the weights under Hugging Face's names, with [out, in] matrices."""
    write_shards(staged, planned(source, options.dtype), options.max_shard_size)


def write_config(source: Source, staged: Path, options: Options) -> None:
    """Write config.json."""
    config = hugging_face_config(source.family.name, source.config, dtype=options.dtype or usual_dtype(source))
    if source.facts.raw.get("pad_token_id") is None:
        # PaddleNLP's default 0 is an ordinary token in many vocabularies. transformers never trains the padding's row.
        config["pad_token_id"] = None
    (staged / MODEL_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def planned(source: Source, dtype: str | None) -> list[PlannedTensor]:
    """Return every weight of a source as it is written to Hugging Face's files.

    Args:
        source: The source.
        dtype: Type of the weights; None: as stored.
    """
    return [_planned(source, name, dtype or source.dtype(name)) for name in source.names()]


def _planned(source: Source, name: str, dtype: str) -> PlannedTensor:
    shape = source.shape(name)
    foreign = hugging_face(source.family.name, name, len(shape))

    def read() -> np.ndarray:
        values = source.read(name)
        return values.T if foreign.transpose else values

    return PlannedTensor(foreign.name, shape[::-1] if foreign.transpose else shape, dtype, source.dtype(name), read)


def usual_dtype(source: Source) -> str:
    """Return the type in which most bytes of the weights are stored."""
    bytes_of: Counter[str] = Counter()
    for name in source.names():
        bytes_of[source.dtype(name)] += math.prod(source.shape(name)) * ITEM_SIZES[source.dtype(name)]
    return bytes_of.most_common(1)[0][0]
