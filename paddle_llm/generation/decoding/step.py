"""Common parts of greedy decoding, sampling and beam search: batches, the repetition penalty, broadcast of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import paddle
import paddle.distributed as dist

from paddle_llm.generation.decoding.sampling import RepetitionPenalty
from paddle_llm.generation.options import DecodeOptions
from paddle_llm.generation.static.program import StaticBatch, StaticProgram
from paddle_llm.models.incremental import IncrementalNetwork
from paddle_llm.models.prompt import Prompt
from paddle_llm.models.weights.vocabulary import real_vocab_size
from paddle_llm.parallel.mesh import Axis

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel


class Batch(Protocol):
    """A batch of prompts in a network that caches keys and values."""

    def read_prompts(self) -> paddle.Tensor:
        """Return the logits [B, V] of the first token after each prompt."""

    def read(self, tokens_B: paddle.Tensor) -> paddle.Tensor:
        """Append one token to each row and return the logits [B, V] of the next one."""

    def keep_rows(self, rows: paddle.Tensor) -> None:
        """Keep only these rows, in this order. A row may be repeated."""


def open_batch(
    model: LanguageModel | StaticProgram,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    options: DecodeOptions,
    *,
    as_tensors: bool = True,
) -> Batch:
    """Open a batch of prompts in a PaddleNLP network or a static export.

    Args:
        model: Network, or a static export.
        prompts: Prompts, none of them empty.
        max_new_tokens: Maximum number of tokens appended to any row.
        options: Options of decoding.
        as_tensors: Whether logits must be `paddle.Tensor`s. A static export returns numpy arrays at a lower cost.
    """
    if isinstance(model, StaticProgram):
        return StaticBatch(model, prompts, max_new_tokens, as_tensors=as_tensors)
    return IncrementalNetwork(model, options.family, prompts, max_new_tokens)


def repetition_penalty(
    model: LanguageModel | StaticProgram, prompts: Sequence[Prompt], options: DecodeOptions
) -> RepetitionPenalty | None:
    """Return the repetition penalty of a batch; None if there is none."""
    penalty = options.strategy.repetition_penalty
    if penalty == 1:
        return None
    return RepetitionPenalty([prompt.ids for prompt in prompts], real_vocab_size(model.config), penalty)


def broadcast_from_first(values: paddle.Tensor, tensor: Axis | None) -> paddle.Tensor:
    """Replace a tensor by that of the first tensor-parallel rank.

    Ranks that round differently may choose different tokens, and would then wait for each other forever.
    """
    if tensor is not None and tensor.size > 1:
        dist.broadcast(values, src=tensor.ranks[0], group=tensor.group)
    return values
