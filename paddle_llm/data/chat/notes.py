"""What is reported about the rows of a data set: a kind for each row, one sentence with a count for each kind."""

from __future__ import annotations

import re
from collections.abc import Iterator

from paddle_llm.core.counts import counted
from paddle_llm.data.chat.answers import BLOCK_NOT_OPENED, HEADER_LEARNED, PROMPT_DIFFERS
from paddle_llm.data.chat.special_text import has_special_text
from paddle_llm.data.chat.writing import (
    CHANGED,
    EARLIER_UNTRAINED,
    END_ADDED,
    EOS_ADDED,
    LAST_ONLY,
    LEFT_OUT,
    NOT_WRITTEN,
    REWORDED,
    SPECIAL_TEXT,
    SPECIAL_TOKENS,
    TOOL_CALLS,
)
from paddle_llm.data.instructions.formats import Conversation

SPECIAL_TEXT_FLAG = "--special_tokens_in_content"
_SENTENCES = {
    SPECIAL_TEXT: f"the text of special tokens in messages stays text ({SPECIAL_TEXT_FLAG} tokens makes it special tokens)",
    SPECIAL_TOKENS: "the text of special tokens in messages becomes special tokens",
    EOS_ADDED: "the chat template ends answers without a special token; EOS is learned behind them",
    END_ADDED: "the chat template's {% generation %} leaves out the token that ends an answer; it is learned",
    PROMPT_DIFFERS: "the chat template writes the question differently once it is answered (a system text may be missing), so "
    "that the prompt of generation is another than the trained one",
    BLOCK_NOT_OPENED: "the generation prompt opens a block (such as <think>) that these answers are written without",
    HEADER_LEARNED: "the chat template has no generation prompt; what it writes in front of an answer (such as "
    "<|im_start|>assistant) is learned as a part of the answer",
    LAST_ONLY: "the chat template writes the question differently once it is answered; only the last answer is learned, "
    "behind the prompt that generation uses",
    EARLIER_UNTRAINED: "the chat template writes earlier answers differently once more follows; those that could not be "
    "found again are not learned",
    REWORDED: "the chat template leaves out or changes a part of an answer's content (such as its reasoning)",
}


def describe(kind: str, count: int) -> str:
    """Describe a kind of note and how many samples it applies to."""
    return f"{counted(count, 'sample')}: {_meaning(kind)}"


def _meaning(kind: str) -> str:
    if kind.startswith(NOT_WRITTEN):
        return f"the chat template does not write their {kind.removeprefix(NOT_WRITTEN)!r}; it is ignored"
    if kind.startswith(LEFT_OUT):
        return f"the chat template does not write the content of their {kind.removeprefix(LEFT_OUT)} messages"
    if kind.startswith(CHANGED):
        return f"the chat template writes the content of their {kind.removeprefix(CHANGED)} messages in another way"
    return _SENTENCES[kind]


def is_about_the_prompt(kind: str) -> bool:
    """Whether a kind is about what comes before an answer, so that it matters for generation, too."""
    return kind in (SPECIAL_TEXT, SPECIAL_TOKENS) or kind.startswith((NOT_WRITTEN, LEFT_OUT, CHANGED))


def notes_of_built_in(conversation: Conversation, specials: re.Pattern[str] | None, protect: bool) -> Iterator[str]:
    """Kinds for a conversation that a built-in template writes: it takes roles and content alone."""
    if any(has_special_text(turn.text, specials) for turn in conversation.turns):
        yield SPECIAL_TEXT if protect else SPECIAL_TOKENS
    yield from (NOT_WRITTEN + key for key in dropped_fields(conversation))


def dropped_fields(conversation: Conversation) -> list[str]:
    """Names of the fields that a built-in template does not write, each once."""
    keys = [key for key, value in conversation.fields.items() if value]
    keys += [
        key
        for turn in conversation.turns
        for key, value in turn.fields.items()
        if value and key not in ("role", "content")
    ]
    return list(dict.fromkeys(keys))


def has_tool_calls(conversation: Conversation) -> bool:
    """Whether a message carries tool calls as objects."""
    return any(turn.fields.get(TOOL_CALLS) for turn in conversation.turns)
