"""`decode` continues prompts token by token. Greedy decoding and sampling are here, beam search is in `beams.py`.

The networks and their caches are PaddleNLP's; the loop replaces its `generate` (3.0.0b4). That function draws from the
random state of training, penalises the repetition of padding, supports only one end token in beam search, sorts the
caches of ChatGLM2 by the wrong axis there, and recomputes the whole text of GLM for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import paddle

from paddle_llm.generation.decoding.beams import search_beams
from paddle_llm.generation.decoding.repetition import ends_in_cycle
from paddle_llm.generation.decoding.sampling import TokenChooser
from paddle_llm.generation.decoding.step import broadcast_from_first, open_batch, repetition_penalty
from paddle_llm.generation.options import DecodeOptions
from paddle_llm.models.prompt import Prompt

if TYPE_CHECKING:
    from paddle_llm.generation.static.program import StaticProgram
    from paddle_llm.models.protocols import LanguageModel

OnToken = Callable[[int, int], None]  # (index of the prompt, token)


@paddle.no_grad()
def decode(
    model: LanguageModel | StaticProgram,
    prompts: Sequence[Prompt],
    max_new_tokens: Sequence[int],
    options: DecodeOptions,
    *,
    keys: Sequence[int] | None = None,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """Continue prompts as one batch. Call it within `generating(model)`.

    Args:
        model: Network, or a static export.
        prompts: Prompts, none of them empty.
        max_new_tokens: Maximum number of new tokens of each prompt.
        options: Family, stop tokens, strategy, mesh axis, and whether an exact repetition ends a text.
        keys: Number of each prompt, which with the seed determines its random stream; None: its index.
        on_token: Function called for each new token (not in beam search).

    Returns:
        The new tokens of each prompt.
    """
    if options.strategy.num_beams > 1:
        return search_beams(model, prompts, max_new_tokens, options)
    texts: list[list[int]] = [[] for _ in prompts]
    active = [number for number, count in enumerate(max_new_tokens) if count > 0]
    if not active:
        return texts
    is_greedy = not options.strategy.samples and options.strategy.repetition_penalty == 1
    first = [prompts[number] for number in active]
    batch = open_batch(
        model, first, max(max_new_tokens[number] for number in active), options, as_tensors=not is_greedy
    )
    chooser = TokenChooser(options.strategy, [number if keys is None else keys[number] for number in active])
    penalty = repetition_penalty(model, first, options)
    logits_BV = batch.read_prompts()
    while True:
        tokens_B = broadcast_from_first(chooser(penalty(logits_BV) if penalty else logits_BV), options.tensor)
        kept_rows, tokens = [], tokens_B.tolist()
        for row, token in enumerate(tokens):
            number = active[row]
            if token in options.stop_ids:
                continue
            texts[number].append(token)
            if on_token is not None:
                on_token(number, token)
            if not _is_complete(texts[number], max_new_tokens[number], options):
                kept_rows.append(row)
        if not kept_rows:
            return texts
        if penalty:
            penalty.add(tokens_B)
        if len(kept_rows) < len(active):  # finished texts leave the batch
            rows = paddle.to_tensor(np.array(kept_rows, np.int64))
            batch.keep_rows(rows)
            chooser.keep_rows(kept_rows)
            if penalty:
                penalty.keep_rows(rows)
            tokens_B, active = paddle.to_tensor([tokens[row] for row in kept_rows]), [active[row] for row in kept_rows]
        logits_BV = batch.read(tokens_B)


def _is_complete(text: Sequence[int], max_new_tokens: int, options: DecodeOptions) -> bool:
    """Return whether a text ends here although its last token is not a stop token."""
    return len(text) >= max_new_tokens or (options.stop_on_repetition and ends_in_cycle(text))
