"""Prompt tuning (Lester et al. 2021): learned embeddings precede the text that the model reads.

They are tokens with separate ids, from `FIRST_PROMPT_ID` on, which `with_prompt` puts before a sample. Masks,
positions, padding on the left and generation treat them like any other token, and only the embedding layer
distinguishes them.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import paddle
import paddle.nn.functional as F

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.models.weights.names import EMBEDDINGS
from paddle_llm.peft.attachment import Attachment, unsplit_shard
from paddle_llm.peft.method import Method

FIRST_PROMPT_ID = 2**30
_DEVIATION = 0.02


def with_prompt(sample: dict[str, np.ndarray], method: Method) -> dict[str, np.ndarray]:
    """Return a sample (`input_ids` [S] and optionally `labels` [S]) with the prompt in front, which has no labels."""
    count = method.num_prompt_tokens
    ids = np.arange(FIRST_PROMPT_ID, FIRST_PROMPT_ID + count, dtype=np.int64)
    extended = {**sample, "input_ids": np.concatenate([ids, sample["input_ids"]])}
    if "labels" in sample:
        extended["labels"] = np.concatenate([np.full(count, IGNORE_INDEX, np.int64), sample["labels"]])
    return extended


class Samples(Protocol):
    """A map-style dataset whose samples have `input_ids` [S] and optionally `labels` [S]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]: ...

    def identity(self) -> Any:
        """Return the `DataIdentity` of the samples; None if it is not known."""
        ...

    def digest(self) -> str | None:
        """Return a digest of the samples' content; None if it is not known."""
        ...

    def sample_ids(self, index: int) -> str:
        """Return the origin of a sample."""
        ...


class PromptedDataset:
    """A dataset with the prompt in front of every sample.

    Args:
        samples: Dataset without the prompt.
        method: Settings of prompt tuning.
    """

    def __init__(self, samples: Samples, method: Method) -> None:
        self._samples, self._method = samples, method

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return with_prompt(self._samples[index], self._method)

    def identity(self) -> Any:
        """Return the `DataIdentity` without the prompt, which is compared with the method."""
        return self._samples.identity()

    def digest(self) -> str | None:
        """Return the digest of the dataset without the prompt."""
        return self._samples.digest()

    def sample_ids(self, index: int) -> str:
        """Return the origin of a sample."""
        return self._samples.sample_ids(index)


def install(attachment: Attachment) -> None:
    """Extend the embedding layer by the new ids."""
    table = attachment.base[EMBEDDINGS[attachment.family.name]]
    embedding = next(layer for layer in attachment.model.sublayers() if layer._parameters.get("weight") is table)
    path = EMBEDDINGS[attachment.family.name].removesuffix(".weight")
    count = attachment.method.num_prompt_tokens
    prompt_PH = attachment.add_parameter(
        embedding, "prompt", path, unsplit_shard((count, table.shape[1])), _DEVIATION, table.dtype
    )
    embed = embedding.forward

    def forward(ids_BS: paddle.Tensor) -> paddle.Tensor:
        is_prompt_BS = ids_BS >= FIRST_PROMPT_ID
        tokens_BSH = embed(paddle.where(is_prompt_BS, paddle.zeros_like(ids_BS), ids_BS))
        number_BS = paddle.clip(ids_BS - FIRST_PROMPT_ID, 0, count - 1)
        learned_BSH = F.embedding(number_BS, prompt_PH)
        return paddle.where(is_prompt_BS.unsqueeze(-1), learned_BSH, tokens_BSH)

    attachment.replace_attribute(embedding, "forward", forward)
