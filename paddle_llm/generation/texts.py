"""From prompts to texts: batches of prompts of like length, decoded and turned back into words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_llm.config.positions import position_limit
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.generation.sampling import Choice
from paddle_llm.models.prompt import Prompt
from paddle_llm.parallel.mesh import Axis


@dataclass(frozen=True)
class Answer:
    """What a network has said. tokens: its tokens without the one that ends it; text: in words."""

    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Generator:
    """A network with all that is asked of its answers. Used within `generating(model)`.

    Args:
        family: the model's, by name.
        stop_ids: tokens that end an answer.
        room: the most tokens of an answer; fewer where the model has no positions for them.
        tensor: the mesh's axis of tensor-parallel ranks.
    """

    model: Any
    family: str
    codec: TextCodec
    stop_ids: Collection[int]
    choice: Choice
    room: int
    tensor: Axis | None = None

    def __call__(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[int],
        batch_size: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """An answer to each prompt, in the order of the prompts.

        Args:
            keys: a number of each prompt, on which the sampling depends.
            on_batch: told how many answers there are, after each batch.
        """
        from paddle_llm.generation.decode import decode

        answers: dict[int, Answer] = {}
        # Prompts of like length need little padding.
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            part = [with_learnt_prompt(prompts[place], self.model) for place in places]
            rooms = [self.room_behind(prompt) for prompt in part]
            found = decode(
                self.model,
                self.family,
                part,
                rooms,
                self.stop_ids,
                self.choice,
                keys=[keys[place] for place in places],
                tensor=self.tensor,
            )
            answers |= {
                place: Answer(tuple(ids), self.codec.decode(ids)) for place, ids in zip(places, found, strict=True)
            }
            if on_batch is not None:
                on_batch(len(answers))
        return [answers[place] for place in range(len(prompts))]

    def check_room(self, prompt: Prompt) -> None:
        """Raise UserError where not all the tokens that were asked for can follow."""
        most, length = positions_of(self.model.config), len(with_learnt_prompt(prompt, self.model))
        if most is not None and length + self.room > most:
            raise UserError(
                f"a prompt of {length} tokens and --max_new_tokens {self.room} are more than the model's {most} positions; "
                f"at most {max(most - length, 0)} new tokens are left"
            )

    def room_behind(self, prompt: Prompt) -> int:
        """Return how many tokens can follow.

        Raises:
            UserError: If the prompt fills all positions of the model.
        """
        most = positions_of(self.model.config)
        if most is None:
            return self.room
        if len(prompt) >= most:
            raise UserError(f"The prompt has {len(prompt)} tokens and the model {most} positions. Shorten the prompt.")
        return min(self.room, most - len(prompt))


def with_learnt_prompt(prompt: Prompt, model: Any) -> Prompt:
    """The prompt as a network with prompt tuning reads it; the same for others."""
    from paddle_llm.peft.attachment import active_attachment
    from paddle_llm.peft.methods.prompt import with_prompt

    attachment = active_attachment(model)
    if attachment is None or attachment.method.name != "prompt":
        return prompt
    ids = with_prompt({"input_ids": np.asarray(prompt.ids)}, attachment.method)["input_ids"].tolist()
    return Prompt(ids, prompt.prefix + len(ids) - len(prompt) if prompt.prefix else 0)


def positions_of(config: Any) -> int | None:
    """How many tokens a model has positions for; None: as many as one likes (BLOOM)."""
    return position_limit(config)
