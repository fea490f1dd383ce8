"""Messages about the rows of a dataset: each row has kinds of notes; each kind has one sentence with a count."""

from __future__ import annotations

import re
from collections.abc import Iterator

from paddle_llm.core.counts import counted
from paddle_llm.data.chat.answers import BLOCK_NOT_OPENED, HEADER_LEARNED, PROMPT_DIFFERS
from paddle_llm.data.chat.jinja_rendering import (
    CONTENT_CHANGED,
    CONTENT_DROPPED,
    EARLIER_UNTRAINED,
    END_ADDED,
    EOS_ADDED,
    LAST_ONLY,
    NOT_WRITTEN,
    REWORDED,
    SPECIAL_TEXT,
    SPECIAL_TOKENS,
    TOOL_CALLS,
)
from paddle_llm.data.chat.special_text import find_special_text
from paddle_llm.data.instructions.conversation import Conversation

SPECIAL_TEXT_FLAG = "--special_tokens_in_content"
_SENTENCES = {
    SPECIAL_TEXT: f"the text of special tokens in messages stays text (use {SPECIAL_TEXT_FLAG} tokens to change it)",
    SPECIAL_TOKENS: "the text of special tokens in messages becomes special tokens",
    EOS_ADDED: "the chat template ends answers without a special token; EOS is trained after them",
    END_ADDED: "the chat template's {% generation %} excludes the token that ends an answer; it is trained anyway",
    PROMPT_DIFFERS: "the chat template writes an answered question differently (for example without the system text), so the "
    "prompt in generation differs from the trained one",
    BLOCK_NOT_OPENED: "the generation prompt opens a block (such as <think>) that is not in these answers",
    HEADER_LEARNED: "the chat template has no generation prompt; the text that it writes before an answer (such as "
    "<|im_start|>assistant) is trained as part of the answer",
    LAST_ONLY: "the chat template writes an answered question differently; only the last answer is trained, after the prompt "
    "used in generation",
    EARLIER_UNTRAINED: "the chat template rewrites earlier answers when messages follow; answers that could not be located "
    "are not trained",
    REWORDED: "the chat template drops or changes a part of an answer's content (such as its reasoning)",
}


def describe(kind: str, count: int) -> str:
    """Return the meaning of a kind of note with the number of samples it applies to."""
    return f"{counted(count, 'sample')}: {_meaning(kind)}"


def _meaning(kind: str) -> str:
    if kind.startswith(NOT_WRITTEN):
        return f"the chat template does not write their {kind.removeprefix(NOT_WRITTEN)!r}; it is ignored"
    if kind.startswith(CONTENT_DROPPED):
        return f"the chat template does not write the content of their {kind.removeprefix(CONTENT_DROPPED)} messages"
    if kind.startswith(CONTENT_CHANGED):
        return f"the chat template writes the content of their {kind.removeprefix(CONTENT_CHANGED)} messages in another way"
    return _SENTENCES[kind]


def concerns_prompt(kind: str) -> bool:
    """Return whether a kind concerns the text before an answer, which also matters for generation."""
    return kind in (SPECIAL_TEXT, SPECIAL_TOKENS) or kind.startswith((NOT_WRITTEN, CONTENT_DROPPED, CONTENT_CHANGED))


def notes_for_built_in(conversation: Conversation, specials: re.Pattern[str] | None, protect: bool) -> Iterator[str]:
    """Yield the kinds for a conversation rendered by a built-in template, which writes only roles and content."""
    if any(find_special_text(turn.text, specials) for turn in conversation.turns):
        yield SPECIAL_TEXT if protect else SPECIAL_TOKENS
    yield from (NOT_WRITTEN + key for key in dropped_fields(conversation))


def dropped_fields(conversation: Conversation) -> list[str]:
    """Return the names of non-empty fields that a built-in template does not write, without duplicates."""
    keys = [key for key, value in conversation.fields.items() if value]
    keys += [
        key
        for turn in conversation.turns
        for key, value in turn.fields.items()
        if value and key not in ("role", "content")
    ]
    return list(dict.fromkeys(keys))


def has_tool_calls(conversation: Conversation) -> bool:
    """Return whether a message has tool calls as objects."""
    return any(turn.fields.get(TOOL_CALLS) for turn in conversation.turns)
