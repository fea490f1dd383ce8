"""`Conversation`, the common form of instruction data: readers create it and chat templates render it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
# Roles in lower case, as used by ShareGPT, OpenAI, LLaMA-Factory, ms-swift, Llama 3, OASST and ChatGLM3.
ROLES = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "human": USER,
    "user": USER,
    "prompter": USER,
    "gpt": ASSISTANT,
    "assistant": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bot": ASSISTANT,
    "model": ASSISTANT,
    "ai": ASSISTANT,
    "function_call": ASSISTANT,
    "tool_call": ASSISTANT,
    "tool": TOOL,
    "observation": TOOL,
    "function": TOOL,
    "function_response": TOOL,
    "tool_response": TOOL,
    "ipython": TOOL,
}


class BadRow(Exception):
    """A row is not a conversation. The message is the reason without the row, so that equal reasons can be counted."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: SYSTEM, USER, ASSISTANT or TOOL.
        content: Text of the message.
        has_loss: Loss flag of the data; None if the data has none.
        input: Second field of an alpaca instruction; only the alpaca template writes it separately.
        fields: Further keys of the message for a Jinja template: tool_calls, reasoning_content, name, tool_call_id. If
            it contains `content`, that replaces the text, and the turn is a tool call that the data writes as text.
    """

    role: str
    content: str
    has_loss: bool | None = None
    input: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def text(self) -> str:
        """Joined content and input, as all templates except alpaca's write them."""
        return f"{self.content}\n{self.input}" if self.input else self.content


@dataclass(frozen=True)
class Round:
    """One question and its answer.

    Attributes:
        questions: Turns before the answer: a user's turn, or replies of tools.
        answer: Turn of the assistant; None if it is to be generated.
    """

    questions: tuple[Turn, ...]
    answer: Turn | None


@dataclass(frozen=True)
class Conversation:
    """One sample before any template.

    Attributes:
        turns: Messages in order.
        task: Name of the task; empty if unknown.
        language: Language of the row; empty if unknown.
        where: File and line, for messages.
        fields: Further variables of the row for a Jinja template: tools, documents.
    """

    turns: tuple[Turn, ...]
    task: str = ""
    language: str = ""
    where: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def system(self) -> str:
        """Text of the system turn; empty if there is none."""
        return self.turns[0].content if self.turns and self.turns[0].role == SYSTEM else ""

    def rounds(self) -> list[Round]:
        """Return the turns after the system turn, split after each answer."""
        rounds: list[Round] = []
        questions: list[Turn] = []
        for turn in self.turns:
            if turn.role == ASSISTANT:
                rounds.append(Round(tuple(questions), turn))
                questions = []
            elif turn.role != SYSTEM:
                questions.append(turn)
        return [*rounds, Round(tuple(questions), None)] if questions else rounds

    def without_first_round(self) -> Conversation:
        """Return the conversation without its oldest question and the turns that answer it; keeps the last round."""
        starts = [i for i, turn in enumerate(self.turns) if turn.role == USER]
        if len(starts) < 2:
            return self
        return replace(self, turns=(*self.turns[: starts[0]], *self.turns[starts[1] :]))

    def prompt(self) -> Conversation:
        """Return the conversation without the last answer."""
        return replace(self, turns=self.turns[:-1]) if self.turns[-1].role == ASSISTANT else self


def calls_as_text(conversation: Conversation) -> Conversation:
    """Return the conversation for a template without tool calls: calls that are text in the data become text again."""
    if not any("content" in turn.fields for turn in conversation.turns):
        return conversation
    return replace(conversation, turns=tuple(map(_call_as_text, conversation.turns)))


def _call_as_text(turn: Turn) -> Turn:
    if "content" not in turn.fields:
        return turn
    return replace(
        turn, fields={key: value for key, value in turn.fields.items() if key not in ("content", "tool_calls")}
    )
