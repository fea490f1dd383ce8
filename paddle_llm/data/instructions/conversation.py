"""Instruction data as one record, `Conversation`: what every reader makes and every template takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
# Roles in lower case, as written by ShareGPT, OpenAI, LLaMA-Factory, ms-swift, Llama 3, OASST and ChatGLM3.
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
    """A row that is not a conversation; the message is the reason, without the row, so that reasons can be counted."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: SYSTEM, USER, ASSISTANT or TOOL.
        content: The text.
        bears_loss: The loss flag of the data; None if the data has none.
        input: The second field of an alpaca instruction, which only the alpaca template sets apart.
        fields: Further keys of the message as a Jinja template sees them: tool_calls, reasoning_content, name, tool_call_id. A
            `content` in it replaces the text; such a turn is a tool call that the data writes as text.
    """

    role: str
    content: str
    bears_loss: bool | None = None
    input: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def text(self) -> str:
        """content and input, as every template but alpaca's has them."""
        return f"{self.content}\n{self.input}" if self.input else self.content


@dataclass(frozen=True)
class Round:
    """What is asked (a user's turn, or tools' replies) and the answer; None: the answer that is to be generated."""

    asked: tuple[Turn, ...]
    answer: Turn | None


@dataclass(frozen=True)
class Conversation:
    """One sample before any template.

    Attributes:
        turns: The messages in order.
        where: File and line, for messages.
        fields: Further variables of a Jinja template that the row brings: tools, documents.
    """

    turns: tuple[Turn, ...]
    task: str = ""
    language: str = ""
    where: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def system(self) -> str:
        """The system turn's text; empty without one."""
        return self.turns[0].content if self.turns and self.turns[0].role == SYSTEM else ""

    def rounds(self) -> list[Round]:
        """The turns after the system's, cut behind each answer."""
        rounds: list[Round] = []
        asked: list[Turn] = []
        for turn in self.turns:
            if turn.role == ASSISTANT:
                rounds.append(Round(tuple(asked), turn))
                asked = []
            elif turn.role != SYSTEM:
                asked.append(turn)
        return [*rounds, Round(tuple(asked), None)] if asked else rounds

    def without_first_round(self) -> Conversation:
        """The same without its oldest question and all that answers it; the last round always stays."""
        starts = [i for i, turn in enumerate(self.turns) if turn.role == USER]
        if len(starts) < 2:
            return self
        return replace(self, turns=(*self.turns[: starts[0]], *self.turns[starts[1] :]))

    def prompt(self) -> Conversation:
        """The same without the last answer."""
        return replace(self, turns=self.turns[:-1]) if self.turns[-1].role == ASSISTANT else self


def calls_as_text(conversation: Conversation) -> Conversation:
    """The same for a template without tool calls: calls that the data writes as text are text again."""
    if not any("content" in turn.fields for turn in conversation.turns):
        return conversation
    return replace(conversation, turns=tuple(map(_call_as_text, conversation.turns)))


def _call_as_text(turn: Turn) -> Turn:
    if "content" not in turn.fields:
        return turn
    return replace(
        turn, fields={key: value for key, value in turn.fields.items() if key not in ("content", "tool_calls")}
    )
