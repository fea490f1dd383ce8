"""The two formats of a saved model folder: PaddleNLP's names and configuration, or Hugging Face's, which transformers loads as they are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.core.artifacts import MODEL_CONFIG
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES
from paddle_llm.models.configuration.to_hugging_face import hugging_face_config
from paddle_llm.models.weights.names import compositions, hugging_face
from paddle_llm.models.weights.vocabulary import plain_config

PADDLENLP, HF = "paddlenlp", "hf"
_FUSED = {".qkv_proj.weight": ("q", "k", "v"), ".gate_up_fused_proj.weight": ("gate", "up")}


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer to be converted (data/tokenizers/tokenizer_json.py)."""

    folder: Path
    tokenizer: Path | None
    template: str | None = None


def check_format(model_format: str, family: str, config: Any) -> None:
    """Check before the training that the network can be saved in this format.

    Raises:
        UserError: If Hugging Face's network of the family cannot express it.
    """
    if model_format == HF:
        try:
            hugging_face_config(family, plain_config(config), dtype="float32")
        except UserError as error:
            raise UserError(f"--model_format {HF}: {error}. Use --model_format {PADDLENLP}.") from None


def tensors_to_save(
    model_format: str, family: str, config: Any, name: str, value: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """What a full weight is saved as: (name, values) under the format's names and in its layout.

    Args:
        name: canonical.
        value: in PaddleNLP's layout.
    """
    if model_format == PADDLENLP:
        yield name, value
        return
    for part_name, part in _unfused(family, config, name, value):
        there = hugging_face(family, part_name, part.ndim)
        yield there.name, np.ascontiguousarray(part.T if there.transpose else part)


def _unfused(family: str, config: Any, name: str, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Query, key and value (gate and up projection) apart, which Hugging Face keeps in matrices of their own."""
    fused = next((end for end in _FUSED if name.endswith(end)), None)
    if fused is None or not FAMILIES[family].capabilities.fused_matrices:
        yield name, value
        return
    for part in _FUSED[fused]:
        part_name = f"{name.removesuffix(fused)}.{part}_proj.weight"
        pieces = compositions(family, part_name, config)
        columns = [value[:, one.source_start : one.source_start + one.stop - one.start] for one in pieces]
        yield part_name, np.concatenate(columns, axis=1)


def write_config(model_format: str, model: Any, family: str, folder: Path, *, dtype: str, pads: bool) -> None:
    """Write config.json.

    Args:
        dtype: of most of the weights.
        pads: whether the model that the training started from names a padding token. PaddleNLP's default, 0, is a word in
            many vocabularies, and transformers never trains the row of the padding.
    """
    config = plain_config(model.config)
    if model_format == PADDLENLP:
        config.architectures = [type(model).__name__.removesuffix("Pipe")]
        config.save_pretrained(str(folder))
        return
    values = hugging_face_config(family, config, dtype=dtype)
    if not pads:
        values["pad_token_id"] = None
    (folder / MODEL_CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    repository = FAMILIES[family].config_json.code_repository
    if repository:
        say(
            f"{folder.name}: transformers loads this family with its authors' code: copy the configuration_*.py and modeling_*.py of "
            f"{repository} into the folder, and load it with trust_remote_code=True"
        )


def write_tokenizer(model_format: str, tokenizer: Any, source: str | None, folder: Path) -> None:
    """Write the tokenizer's files.

    One that transformers has read is saved by transformers. One of PaddleNLP's is converted for the format hf; where it cannot be,
    PaddleNLP's files are written and the reason is reported: the trained weights are not lost with it.

    Args:
        source: the folder that it was read from, or a name built into PaddleNLP.
    """
    if model_format == PADDLENLP or type(tokenizer).__module__.startswith("transformers."):
        tokenizer.save_pretrained(str(folder))
        return
    from paddle_llm.data.tokenizers.tokenizer_json import write_tokenizer as convert

    with tempfile.TemporaryDirectory() as made:
        read = Path(source or "")
        if not source or not read.is_dir():
            read = Path(made)
            tokenizer.save_pretrained(made)
        try:
            convert(TokenizerFolder(read, read), folder, HF)
        except UserError as error:
            say(
                f"--model_format {HF}: the tokenizer is saved in PaddleNLP's format, which transformers does not read: {error}"
            )
            tokenizer.save_pretrained(str(folder))
