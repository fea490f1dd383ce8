"""The two formats of a saved model folder: PaddleNLP's names and configuration, or Hugging Face's for transformers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.core.artifacts import MODEL_CONFIG
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.conversion.tokenizer_json import write_tokenizer as convert_tokenizer
from paddle_llm.families import FAMILIES
from paddle_llm.models.configuration.to_hugging_face import hugging_face_config
from paddle_llm.models.weights.names import fused_pieces, hugging_face
from paddle_llm.models.weights.vocabulary import plain_config

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

    from paddle_llm.data.tokenizers.protocol import Tokenizer
    from paddle_llm.models.protocols import LanguageModel

PADDLENLP, HF = "paddlenlp", "hf"
# Fused matrices of PaddleNLP -> the matrices that Hugging Face's format has instead.
_FUSED = {".qkv_proj.weight": ("q", "k", "v"), ".gate_up_fused_proj.weight": ("gate", "up")}


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer to convert (data/tokenizers/conversion/tokenizer_json.py).

    Attributes:
        folder: Folder with the configuration of the model.
        tokenizer: Folder with the files of the tokenizer.
        template: Chat template; None for the tokenizer's own.
    """

    folder: Path
    tokenizer: Path | None
    template: str | None = None


def check_format(model_format: str, family: str, config: PretrainedConfig) -> None:
    """Check before training that the network can be saved in a format.

    Args:
        model_format: "paddlenlp" or "hf".
        family: Family of the network.
        config: Configuration of the network.

    Raises:
        UserError: If Hugging Face's network of the family has no equivalent of the configuration.
    """
    if model_format == HF:
        try:
            hugging_face_config(family, plain_config(config), dtype="float32")
        except UserError as error:
            problem = str(error).rstrip(".")
            raise UserError(f"--model_format {HF}: {problem}. Use --model_format {PADDLENLP}.") from None


def tensors_to_save(
    model_format: str, family: str, config: PretrainedConfig, name: str, value: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors as which a full weight is saved: name and values, as the format names and transposes them.

    Args:
        model_format: "paddlenlp" or "hf".
        family: Family of the network.
        config: Configuration of the network.
        name: Canonical name of the weight.
        value: Values in PaddleNLP's layout.
    """
    if model_format == PADDLENLP:
        yield name, value
        return
    for part_name, part in _unfused(family, config, name, value):
        target = hugging_face(family, part_name, part.ndim)
        yield target.name, np.ascontiguousarray(part.T if target.transpose else part)


def _unfused(family: str, config: PretrainedConfig, name: str, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Split fused projections (query, key and value; gate and up), which are separate in Hugging Face's format."""
    fused = next((ending for ending in _FUSED if name.endswith(ending)), None)
    if fused is None or not FAMILIES[family].capabilities.fused_matrices:
        yield name, value
        return
    for part in _FUSED[fused]:
        part_name = f"{name.removesuffix(fused)}.{part}_proj.weight"
        pieces = fused_pieces(family, part_name, config)
        columns = [value[:, one.source_start : one.source_start + one.stop - one.start] for one in pieces]
        yield part_name, np.concatenate(columns, axis=1)


def write_config(
    model_format: str, model: LanguageModel, family: str, folder: Path, *, dtype: str, has_padding_token: bool
) -> None:
    """Write config.json.

    Args:
        model_format: "paddlenlp" or "hf".
        model: Network or PipelineLayer.
        family: Family of the network.
        folder: Folder to write to.
        dtype: Data type of most weights.
        has_padding_token: Whether the model from which the training started has a padding token. PaddleNLP's default, 0,
            is a word in many vocabularies, and transformers never trains the embedding of the padding token.
    """
    config = plain_config(model.config)
    if model_format == PADDLENLP:
        config.architectures = [type(model).__name__.removesuffix("Pipe")]
        config.save_pretrained(str(folder))
        return
    values = hugging_face_config(family, config, dtype=dtype)
    if not has_padding_token:
        values["pad_token_id"] = None
    (folder / MODEL_CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    repository = FAMILIES[family].config_json.code_repository
    if repository:
        say(
            f"{folder.name}: transformers loads this family with code that its authors publish. Copy configuration_*.py and "
            f"modeling_*.py of {repository} to the folder and load it with trust_remote_code=True."
        )


def write_tokenizer(model_format: str, tokenizer: Tokenizer, source: str | None, folder: Path) -> None:
    """Write the files of a tokenizer.

    A tokenizer of transformers is saved by transformers. One of PaddleNLP is converted for the format "hf". If that is
    not possible, PaddleNLP's files are written and the reason is reported, so that the trained weights are not lost.

    Args:
        model_format: "paddlenlp" or "hf".
        tokenizer: Tokenizer of transformers or PaddleNLP.
        source: Folder from which it was read, or a published name.
        folder: Folder to write to.
    """
    if model_format == PADDLENLP or type(tokenizer).__module__.startswith("transformers."):
        tokenizer.save_pretrained(str(folder))
        return
    with tempfile.TemporaryDirectory() as temporary:
        source_folder = Path(source or "")
        if not source or not source_folder.is_dir():
            source_folder = Path(temporary)
            tokenizer.save_pretrained(temporary)
        try:
            convert_tokenizer(TokenizerFolder(source_folder, source_folder), folder, HF)
        except UserError as error:
            say(
                f"--model_format {HF}: the tokenizer is saved in PaddleNLP's format, which transformers cannot read: {error}"
            )
            tokenizer.save_pretrained(str(folder))
