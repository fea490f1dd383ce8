"""Generates the texts of prompts: in batches of prompts of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.families.positions import position_limit
from paddle_llm.generation.decoding.repetition import ends_in_cycle
from paddle_llm.generation.options import DecodeOptions
from paddle_llm.generation.static.program import StaticProgram
from paddle_llm.models.prompt import Prompt

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel


@dataclass(frozen=True)
class Answer:
    """The continuation of a prompt.

    Attributes:
        tokens: New tokens, without the one that ends the text.
        text: Text of the tokens.
        is_repetitive: Whether the answer ended because it repeated one sequence of tokens exactly.
    """

    tokens: tuple[int, ...]
    text: str
    is_repetitive: bool = False


@dataclass(frozen=True)
class Generator:
    """A network, its tokenizer and the options of its answers. Use it within `generating(model)`.

    Attributes:
        model: Network, or a static export.
        codec: The tokenizer.
        options: Options of decoding.
        max_new_tokens: Maximum length of an answer, in tokens; the positions of the model limit it further.
    """

    model: LanguageModel | StaticProgram
    codec: TextCodec
    options: DecodeOptions
    max_new_tokens: int

    def __call__(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[int],
        batch_size: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Answer each prompt.

        Args:
            prompts: Prompts, none of them empty.
            keys: Number of each prompt, which with the seed determines its random stream.
            batch_size: Number of prompts decoded together.
            on_batch: Function called after each batch with the number of answers so far.

        Returns:
            Answers in the order of the prompts.
        """
        from paddle_llm.generation.decoding.decode import decode  # imports Paddle

        answers: dict[int, Answer] = {}
        # Prompts of similar length need little padding.
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            batch = [with_learned_prompt(prompts[number], self.model) for number in numbers]
            limits = [self.limit_for(prompt) for prompt in batch]
            found = decode(self.model, batch, limits, self.options, keys=[keys[number] for number in numbers])
            for number, ids, limit in zip(numbers, found, limits, strict=True):
                answers[number] = Answer(tuple(ids), self.codec.decode(ids), self.stopped_by_repetition(ids, limit))
            if on_batch is not None:
                on_batch(len(answers))
        return [answers[number] for number in range(len(prompts))]

    def stopped_by_repetition(self, tokens: Sequence[int], limit: int) -> bool:
        """Return whether decoding ended a text of fewer than `limit` tokens because of a repetition."""
        return self.options.stop_on_repetition and len(tokens) < limit and ends_in_cycle(tokens)

    def check_length(self, prompt: Prompt) -> None:
        """Check that `max_new_tokens` tokens can follow a prompt.

        Raises:
            UserError: If the model has too few positions.
        """
        limit, length = position_limit(self.model.config), len(with_learned_prompt(prompt, self.model))
        if limit is not None and length + self.max_new_tokens > limit:
            raise UserError(
                f"The prompt has {length} tokens, which with --max_new_tokens {self.max_new_tokens} exceeds the model's "
                f"{limit} positions. Use --max_new_tokens {max(limit - length, 0)} or less, or shorten the prompt."
            )

    def limit_for(self, prompt: Prompt) -> int:
        """Return the maximum number of tokens that can follow a prompt.

        Raises:
            UserError: If the prompt fills all positions of the model.
        """
        limit = position_limit(self.model.config)
        if limit is None:
            return self.max_new_tokens
        if len(prompt) >= limit:
            raise UserError(f"The prompt has {len(prompt)} tokens and the model {limit} positions. Shorten the prompt.")
        return min(self.max_new_tokens, limit - len(prompt))


def repetition_notice(answers: Sequence[Answer], where: Sequence[str], advice: str) -> str | None:
    """Return the line that reports answers that ended because of a repetition; None if there are none.

    Args:
        answers: Answers.
        where: Origin of each prompt.
        advice: What to do to get the whole answers.
    """
    stopped = [place for answer, place in zip(answers, where, strict=True) if answer.is_repetitive]
    if not stopped:
        return None
    return (
        f"{counted(len(stopped), 'answer')} of {len(answers)} ended early, because the same tokens were repeated without a "
        f"difference (first: {stopped[0]}). {advice}"
    )


def with_learned_prompt(prompt: Prompt, model: LanguageModel | StaticProgram) -> Prompt:
    """Return the prompt as the network reads it: with prompt tuning, its learned tokens precede it."""
    if isinstance(model, StaticProgram):  # an export has no adapter
        return prompt
    from paddle_llm.peft.attachment import active_attachment  # imports Paddle
    from paddle_llm.peft.methods.prompt import with_prompt

    attachment = active_attachment(model)
    if attachment is None or attachment.method.name != "prompt":
        return prompt
    ids = with_prompt({"input_ids": np.asarray(prompt.ids)}, attachment.method)["input_ids"].tolist()
    return Prompt(ids, prompt.prefix + len(ids) - len(prompt) if prompt.prefix else 0)
