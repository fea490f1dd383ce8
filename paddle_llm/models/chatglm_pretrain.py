"""Pretraining samples of ChatGLM-6B: a prefix that is read in both directions and a continuation that is learned.

ChatGLM-6B is a prefix language model with 2D positions (GLM, Du et al. 2022, sections 2.1 to 2.3). A window of S + 1
tokens t_0 ... t_S of the corpus becomes one sample of S positions, c of them the context:

    input      t_0 ... t_c-1  [gMASK]  <sop>  t_c    ... t_S-3
    label      -    ...   -      -      t_c   t_c+1  ... t_S-2
    position   0    ...  c-1     c      c     c      ... c
    in block   0    ...   0      0      1     2      ...

Only the continuation has a loss. It covers half to all of the window as in GLM's document-level objective: c is uniform
over 1 ... (S - 2) // 2 and computed from the tokens (their CRC-32), so that a window is split at the same point in
every epoch, layout and resumed run. The two special tokens replace the last two tokens of a window. All positions see
the whole prefix. `attention_mask` is the length of the prefix, c + 1 (context and [gMASK]). The network computes its
mask from it on the device, so that the loader does not return S x S booleans.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES
from paddle_llm.families.facts import ModelFacts

if TYPE_CHECKING:
    from paddle_llm.data.tokenizers.protocol import Tokenizer

NOTICE = (
    "ChatGLM-6B: each sample is split into context + [gMASK] + <sop> + continuation, at a point that depends on its tokens "
    "only. Only the continuation has a loss (half to all of the sample)."
)
# Defaults of PaddleNLP's configuration.
_GMASK, _SOP = 130001, 130004


class ChatGLMPretrainTransform:
    """Turns windows of the corpus into samples of a prefix language model. Stateless and picklable.

    Args:
        gmask_id: Token id of [gMASK].
        sop_id: Token id of <sop>, which config.json calls bos_token_id.
    """

    def __init__(self, gmask_id: int, sop_id: int):
        self.gmask_id = gmask_id
        self.sop_id = sop_id

    def __call__(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Return input_ids [S], labels [S], position_ids [2, S] and attention_mask [1] of a window of S + 1 tokens."""
        tokens = np.ascontiguousarray(tokens, dtype=np.int64)
        size = len(tokens) - 1
        context = context_length(tokens)
        input_ids = np.concatenate([tokens[:context], [self.gmask_id, self.sop_id], tokens[context : size - 2]])
        labels = np.full(size, IGNORE_INDEX, np.int64)
        labels[context + 1 :] = tokens[context : size - 1]
        positions = np.zeros((2, size), np.int64)
        positions[0] = np.minimum(np.arange(size), context)
        positions[1, context + 1 :] = np.arange(1, size - context)
        return {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": positions,
            "attention_mask": np.array([context + 1], np.int64),
        }


def context_length(tokens: np.ndarray) -> int:
    """Return the number of context tokens of a window of S + 1 tokens, uniform over 1 ... (S - 2) // 2."""
    longest = (len(tokens) - 3) // 2
    if longest < 1:
        raise UserError(f"max_seq_length = {len(tokens) - 1} is too short for ChatGLM-6B. Use at least 4.")
    return 1 + zlib.crc32(tokens.tobytes()) % longest


def chatglm_transform(facts: ModelFacts, tokenizer: Tokenizer | None = None) -> ChatGLMPretrainTransform:
    """Return the transform with the special tokens of a model.

    Args:
        facts: Shape of the model.
        tokenizer: PaddleNLP's tokenizer; None without one.

    Raises:
        UserError: If the special tokens are not in the vocabulary or have other ids in the tokenizer.
    """
    special = {"gmask_token_id": _GMASK, "bos_token_id": _SOP}
    ids = {name: facts.raw.get(name, default) for name, default in special.items()}
    for name, value in ids.items():
        if not isinstance(value, int) or not 0 <= value < facts.vocab_size:
            raise UserError(
                f"config.json: {name} = {value!r} is outside the vocabulary of {facts.vocab_size}. Set it to the token id that "
                "ChatGLM-6B's tokenizer uses."
            )
        other = getattr(tokenizer, name, None) if hasattr(tokenizer, "gmask_token_id") else None
        if other not in (None, value):
            raise UserError(
                f"{name} is {value} in config.json and {other} in the tokenizer. Use the tokenizer of this model, or correct config.json."
            )
    return ChatGLMPretrainTransform(ids["gmask_token_id"], ids["bos_token_id"])


def sample_transform(facts: ModelFacts, tokenizer: Tokenizer | None = None) -> Callable[[Any], dict[str, Any]] | None:
    """Return the function that turns a window of S + 1 tokens into a sample; None for inputs and shifted labels.

    A function other than that is reported.

    Args:
        facts: Shape of the model.
        tokenizer: PaddleNLP's tokenizer. If it has the special tokens, their ids must be those of config.json.
    """
    if not pretrains_prefix(facts):
        return None
    say(NOTICE)
    return chatglm_transform(facts, tokenizer)


def pretrains_prefix(facts: ModelFacts) -> bool:
    """Return whether pretraining samples of this model consist of a prefix and a continuation."""
    return facts.model_type in FAMILIES and FAMILIES[facts.model_type].network.pretrains_prefix
