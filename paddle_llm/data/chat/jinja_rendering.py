"""Renders a conversation with a Jinja template, locates its answers, and finds out what the template does not write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from paddle_llm.data.chat.answers import Answer, AnswerFinder, Message, NotLocated, Render, marked_answers
from paddle_llm.data.chat.renderer import RenderedText, Renderer, RowRejected
from paddle_llm.data.chat.special_text import WithoutMarkers, find_special_text, unused_characters, with_markers
from paddle_llm.data.instructions.conversation import ASSISTANT, Conversation

# Kinds of notes; notes.py has a sentence for each.
SPECIAL_TEXT, SPECIAL_TOKENS = "special_text", "special_tokens"
EOS_ADDED, END_ADDED = "eos_added", "end_added"
LAST_ONLY, EARLIER_UNTRAINED, REWORDED = "last_only", "earlier_untrained", "reworded"
NOT_WRITTEN = "not_written:"
CONTENT_DROPPED, CONTENT_CHANGED = "content_dropped:", "content_changed:"  # followed by the role
TOOL_CALLS = "tool_calls"


@dataclass(frozen=True)
class RenderedConversation:
    """A rendered conversation with its answers.

    Attributes:
        text: Rendered text.
        cuts: Positions at which it is split before tokenization, so that special-token text in content stays text.
        answers: Spans of the answers that can be trained, in order.
        is_open: Whether it ends with a generation prompt.
        notes: Kinds of notes about the row.
    """

    text: str
    cuts: tuple[int, ...]
    answers: tuple[Answer, ...]
    is_open: bool
    notes: tuple[str, ...] = ()


def template_messages(conversation: Conversation) -> list[Message]:
    """Return the turns as a Jinja template sees them."""
    return [{"role": turn.role, "content": turn.text, **turn.fields} for turn in conversation.turns]


def render_conversation(
    conversation: Conversation,
    renderer: Renderer,
    *,
    specials: re.Pattern[str] | None,
    protect: bool = True,
) -> RenderedConversation:
    """Render a conversation and locate its answers.

    Args:
        conversation: The conversation.
        renderer: The template.
        specials: Pattern of special-token texts.
        protect: Whether such texts in content stay text.

    Raises:
        RowRejected: If the template rejects the conversation, does not write its tool calls, or writes its last answer
            so that it cannot be located.
    """
    messages, variables = template_messages(conversation), dict(conversation.fields)
    reserved = sorted({"messages", "add_generation_prompt", "strftime_now", "chat_template"} & set(variables))
    if reserved:
        raise RowRejected(f"the row sets {reserved[0]!r}, a variable that follows from the conversation")
    is_open = not messages or messages[-1]["role"] != ASSISTANT
    plain = renderer(messages, add_generation_prompt=is_open, **variables)
    notes: list[str] = []
    rendered, marker = plain, None
    if specials is not None and find_special_text([messages, variables], specials):
        notes.append(SPECIAL_TOKENS)
        if protect:
            marker = unused_characters(f"{plain.text}{messages}{variables}", 1)
            safe, safe_variables = with_markers([messages, variables], specials, marker)
            rendered = renderer(safe, add_generation_prompt=is_open, **safe_variables)
            if WithoutMarkers(rendered.text, marker).text == plain.text:
                notes[0] = SPECIAL_TEXT
                messages, variables = safe, safe_variables
            else:  # the template inspects such text
                rendered, marker = plain, None

    def render(part: list[Message], add_generation_prompt: bool) -> str:
        return renderer(part, add_generation_prompt=add_generation_prompt, **variables).text

    if renderer.marks_answers:
        answers, extended = marked_answers(rendered.text, rendered.marked, messages, render, specials)
        text = rendered.text
        notes += [END_ADDED] if extended else []
    else:
        text, answers, more = _locate_answers(render, messages, rendered, specials, is_open, conversation.where)
        notes += more
    unmarked = WithoutMarkers(text, marker)
    moved = tuple(
        replace(answer, begin=unmarked.position(answer.begin), end=unmarked.position(answer.end)) for answer in answers
    )
    if any(not answer.is_ended for answer in moved):
        notes.append(EOS_ADDED)
    notes += _notes_on_answers(conversation, renderer, plain, unmarked.text, moved)
    notes += _notes_on_questions(conversation, renderer, plain)
    notes += _notes_on_fields(conversation, renderer, plain, is_open)
    return RenderedConversation(unmarked.text, unmarked.cuts, moved, is_open, tuple(dict.fromkeys(notes)))


def _locate_answers(
    render: Render,
    messages: list[Message],
    rendered: RenderedText,
    specials: re.Pattern[str] | None,
    is_open: bool,
    where: str,
) -> tuple[str, list[Answer], list[str]]:
    """Return the text, its answers and notes for a template without {% generation %}."""
    finder = AnswerFinder(render, messages, rendered.text, specials)
    try:
        answers, missing = finder.find()
        return rendered.text, answers, [*finder.notes, *([EARLIER_UNTRAINED] if missing else [])]
    except NotLocated:
        pass
    if is_open:
        return rendered.text, [], []  # a prompt, of which nothing is trained
    try:
        text, answer = finder.after_prompt(len(messages) - 1)
        return text, [answer], [LAST_ONLY]
    except NotLocated:
        pass
    raise RowRejected("the chat template changes the last answer, so it cannot be trained", where)


# ---- what the template does not write --------------------------------------------------------------------------------


def _notes_on_answers(
    conversation: Conversation, renderer: Renderer, plain: RenderedText, text: str, answers: tuple[Answer, ...]
) -> Iterator[str]:
    """Yield a note for each answer whose content is not in its span: the template drops or changes a part of it.

    Raises:
        RowRejected: If the template writes no part of it, so that an empty answer would be trained.
    """
    for answer in answers:
        turn = conversation.turns[answer.message]
        content = str(turn.fields.get("content", turn.text)).strip()
        if not content or content in text[answer.begin : answer.end]:
            continue
        if _with_content(conversation, renderer, answer.message, f"x{content}x") == plain:
            raise RowRejected(
                f"the chat template of {renderer.where} does not write the content of answers", conversation.where
            )
        yield REWORDED


def _with_content(conversation: Conversation, renderer: Renderer, number: int, content: str) -> RenderedText | None:
    """Render the conversation with other content in one message; None if the template rejects it."""
    messages = template_messages(conversation)
    messages[number] = {**messages[number], "content": content}
    is_open = messages[-1]["role"] != ASSISTANT
    try:
        return renderer(messages, add_generation_prompt=is_open, **conversation.fields)
    except RowRejected:
        return None


def _notes_on_questions(conversation: Conversation, renderer: Renderer, plain: RenderedText) -> Iterator[str]:
    """Yield a note for each message, other than answers, whose content the template drops or changes."""
    messages = template_messages(conversation)
    for number, turn in enumerate(conversation.turns):
        content = messages[number]["content"]
        if (
            turn.role == ASSISTANT
            or not isinstance(content, str)
            or not content.strip()
            or content.strip() in plain.text
        ):
            continue
        changed = _with_content(conversation, renderer, number, f"x{content}x")
        yield (CONTENT_DROPPED if changed == plain else CONTENT_CHANGED) + turn.role


def _notes_on_fields(
    conversation: Conversation, renderer: Renderer, plain: RenderedText, is_open: bool
) -> Iterator[str]:
    """Yield a note for each field of the row or a message that does not affect the rendered text.

    Raises:
        RowRejected: If that field is tool_calls.
    """
    messages = template_messages(conversation)

    def same(changed: list[Message], variables: dict[str, object]) -> bool:
        try:
            return renderer(changed, add_generation_prompt=is_open, **variables) == plain
        except RowRejected:
            return False

    for key, value in conversation.fields.items():
        others = {name: one for name, one in conversation.fields.items() if name != key}
        if not _is_empty(value) and same(messages, others):
            yield NOT_WRITTEN + key
    for number, turn in enumerate(conversation.turns):
        for key, value in turn.fields.items():
            if key in ("role", "content") or _is_empty(value):
                continue
            without = {name: one for name, one in messages[number].items() if name != key}
            if not same([*messages[:number], without, *messages[number + 1 :]], dict(conversation.fields)):
                continue
            if key == TOOL_CALLS:
                raise RowRejected(
                    f"the chat template of {renderer.where} does not write tool_calls", conversation.where
                )
            yield NOT_WRITTEN + key


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)
