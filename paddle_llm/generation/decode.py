"""`decode`: prompts in, the tokens that a network continues them with out. Greedy and sampling here, beams in `beams.py`.

The networks and their caches are PaddleNLP's; the loop is not its `generate` (3.0.0b4), which draws from the random state
of the training, penalises the repetition of padding, knows no list of end tokens in its beam search and sorts the caches
of ChatGLM2 by the wrong axis there, and computes GLM anew from the first token for each one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

from paddle_llm.generation.sampling import Choice, Chooser, SeenTokens
from paddle_llm.generation.static_network import StaticModel, StaticNetwork
from paddle_llm.models.incremental import IncrementalNetwork
from paddle_llm.models.prompt import Prompt
from paddle_llm.models.weights.vocabulary import real_vocab_size
from paddle_llm.parallel.mesh import Axis

OnToken = Callable[[int, int], None]  # (number of the prompt, token)


@paddle.no_grad()
def decode(
    model: Any,
    family: str,
    prompts: Sequence[Prompt],
    rooms: Sequence[int],
    stop_ids: Collection[int],
    choice: Choice,
    *,
    keys: Sequence[int] | None = None,
    tensor: Axis | None = None,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """Continue prompts together. Within `generating(model)`.

    Args:
        model: a network of PaddleNLP, or a `StaticModel`.
        family: the model's, by name.
        rooms: the most new tokens of each.
        stop_ids: tokens that end a text; they are not part of it.
        keys: a number of each prompt for the sampling, by default its place.
        tensor: the mesh's axis of ranks that each hold a part of the model. All of them call this, and get the same.
        on_token: told each token when it is there (not in a beam search).

    Returns:
        the new tokens of each prompt.
    """
    if choice.num_beams > 1:
        from paddle_llm.generation.beams import search_beams

        return search_beams(model, family, prompts, rooms, stop_ids, choice, tensor)
    texts: list[list[int]] = [[] for _ in prompts]
    going = [number for number, room in enumerate(rooms) if room > 0]
    if not going:
        return texts
    likeliest = not choice.samples and choice.repetition_penalty == 1
    network = open_network(
        model, family, [prompts[n] for n in going], max(rooms[n] for n in going), tensors=not likeliest
    )
    chooser = Chooser(choice, [n if keys is None else keys[n] for n in going])
    seen = seen_tokens(model, [prompts[n] for n in going], choice)
    logits_BV = network.read_prompts()
    while True:
        tokens_B = agreed(chooser(seen(logits_BV) if seen else logits_BV), tensor)
        lasting, tokens = [], tokens_B.tolist()
        for place, token in enumerate(tokens):
            number = going[place]
            if token in stop_ids:
                continue
            texts[number].append(token)
            if on_token is not None:
                on_token(number, token)
            if len(texts[number]) < rooms[number]:
                lasting.append(place)
        if not lasting:
            return texts
        if seen:
            seen.add(tokens_B)
        if len(lasting) < len(going):  # texts that have ended are read no further
            rows = paddle.to_tensor(np.array(lasting, np.int64))
            network.keep_rows(rows)
            chooser.keep_rows(lasting)
            if seen:
                seen.keep_rows(rows)
            tokens_B, going = paddle.to_tensor([tokens[n] for n in lasting]), [going[n] for n in lasting]
        logits_BV = network.read(tokens_B)


def open_network(model: Any, family: str, prompts: Sequence[Prompt], room: int, *, tensors: bool = True) -> Any:
    """A batch of prompts in a network of PaddleNLP, or in a static export: with read_prompts, read and keep_rows.

    Args:
        tensors: whether logits must be a paddle.Tensor; a static export has them cheaper.
    """
    if isinstance(model, StaticModel):
        return StaticNetwork(model, prompts, room, tensors=tensors)
    return IncrementalNetwork(model, family, prompts, room)


def seen_tokens(model: Any, prompts: Sequence[Prompt], choice: Choice) -> SeenTokens | None:
    """What penalises repetition, where that is asked for."""
    if choice.repetition_penalty == 1:
        return None
    return SeenTokens([prompt.ids for prompt in prompts], real_vocab_size(model.config), choice.repetition_penalty)


def agreed(values: Any, tensor: Axis | None) -> Any:
    """The first tensor-parallel rank's: where ranks should ever round differently, they would wait for each other for ever."""
    if tensor is not None and tensor.size > 1:
        dist.broadcast(values, src=tensor.ranks[0], group=tensor.group)
    return values
