"""A conversation as the text that a Jinja template writes, with the spans of its answers and what the template leaves out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from paddle_llm.data.chat.answers import Answer, AnswerFinder, Message, NotLocated, Render, marked_answers
from paddle_llm.data.chat.rendering import Rendered, Renderer, RowRefused
from paddle_llm.data.chat.special_text import Unmarked, has_special_text, unused_characters, with_marks
from paddle_llm.data.instructions.formats import ASSISTANT, Conversation

# Kinds of notes; notes.py has the sentence for each.
SPECIAL_TEXT, SPECIAL_TOKENS = "special_text", "special_tokens"
EOS_ADDED, END_ADDED = "eos_added", "end_added"
LAST_ONLY, EARLIER_UNTRAINED, REWORDED = "last_only", "earlier_untrained", "reworded"
NOT_WRITTEN = "not_written:"
LEFT_OUT, CHANGED = "left_out:", "changed:"  # with the role
TOOL_CALLS = "tool_calls"


@dataclass(frozen=True)
class Written:
    """A rendered conversation.

    Attributes:
        text: The text.
        cuts: Positions at which it is cut before tokenization, so that special-token text of the content stays text.
        answers: Spans of the answers that may be trained, in order.
        is_open: Whether it ends with a generation prompt.
        notes: Kinds of what is to be reported about the row.
    """

    text: str
    cuts: tuple[int, ...]
    answers: tuple[Answer, ...]
    is_open: bool
    notes: tuple[str, ...] = ()


def messages_of(conversation: Conversation) -> list[Message]:
    """The turns as a Jinja template sees them."""
    return [{"role": turn.role, "content": turn.text, **turn.fields} for turn in conversation.turns]


def write(
    conversation: Conversation,
    renderer: Renderer,
    *,
    specials: re.Pattern[str] | None,
    protect: bool = True,
) -> Written:
    """Render a conversation and find its answers.

    Args:
        specials: Texts of the special tokens.
        protect: Whether such texts stay text in content.

    Raises:
        RowRefused: If the template refuses the conversation, does not write its tool calls, or writes its last answer in a way in
            which it cannot be found.
    """
    messages, variables = messages_of(conversation), dict(conversation.fields)
    reserved = sorted({"messages", "add_generation_prompt", "strftime_now", "chat_template"} & set(variables))
    if reserved:
        raise RowRefused(f"the row sets {reserved[0]!r} of the chat template, which follows from the conversation")
    is_open = not messages or messages[-1]["role"] != ASSISTANT
    plain = renderer(messages, add_generation_prompt=is_open, **variables)
    notes: list[str] = []
    rendered, mark = plain, None
    if specials is not None and has_special_text([messages, variables], specials):
        notes.append(SPECIAL_TOKENS)
        if protect:
            mark = unused_characters(f"{plain.text}{messages}{variables}", 1)
            safe, safe_variables = with_marks([messages, variables], specials, mark)
            rendered = renderer(safe, add_generation_prompt=is_open, **safe_variables)
            if Unmarked(rendered.text, mark).text == plain.text:
                notes[0] = SPECIAL_TEXT
                messages, variables = safe, safe_variables
            else:  # the template looks at such text
                rendered, mark = plain, None

    def render(part: list[Message], add_generation_prompt: bool) -> str:
        return renderer(part, add_generation_prompt=add_generation_prompt, **variables).text

    if renderer.marks_answers:
        answers, extended = marked_answers(rendered.text, rendered.marked, messages, render, specials)
        text = rendered.text
        notes += [END_ADDED] if extended else []
    else:
        text, answers, more = _located(render, messages, rendered, specials, is_open, conversation.where)
        notes += more
    unmarked = Unmarked(text, mark)
    moved = tuple(
        replace(answer, begin=unmarked.position(answer.begin), end=unmarked.position(answer.end)) for answer in answers
    )
    if any(not answer.is_ended for answer in moved):
        notes.append(EOS_ADDED)
    notes += _rewordings(conversation, renderer, plain, unmarked.text, moved)
    notes += _lost_questions(conversation, renderer, plain)
    notes += _not_written(conversation, renderer, plain, is_open)
    return Written(unmarked.text, unmarked.cuts, moved, is_open, tuple(dict.fromkeys(notes)))


def _located(
    render: Render,
    messages: list[Message],
    rendered: Rendered,
    specials: re.Pattern[str] | None,
    is_open: bool,
    where: str,
) -> tuple[str, list[Answer], list[str]]:
    finder = AnswerFinder(render, messages, rendered.text, specials)
    try:
        answers, missing = finder.find()
        return rendered.text, answers, [*finder.notes, *([EARLIER_UNTRAINED] if missing else [])]
    except NotLocated:
        pass
    if is_open:
        return rendered.text, [], []  # a prompt: nothing of it is trained
    try:
        text, answer = finder.alone(len(messages) - 1)
        return text, [answer], [LAST_ONLY]
    except NotLocated:
        pass
    raise RowRefused("the chat template does not write the last answer as it is, so that it cannot be trained", where)


# ---- what the template leaves out ------------------------------------------------------------------------------------


def _rewordings(
    conversation: Conversation, renderer: Renderer, plain: Rendered, text: str, answers: tuple[Answer, ...]
) -> Iterator[str]:
    """A note if an answer's content is not in its span: the template drops or changes a part of it.

    Raises:
        RowRefused: If the template writes nothing of it, so that an empty answer would be trained.
    """
    for answer in answers:
        turn = conversation.turns[answer.message]
        content = str(turn.fields.get("content", turn.text)).strip()
        if not content or content in text[answer.begin : answer.end]:
            continue
        if _with_content(conversation, renderer, answer.message, f"x{content}x") == plain:
            raise RowRefused(
                f"the chat template of {renderer.where} does not write the content of answers", conversation.where
            )
        yield REWORDED


def _with_content(conversation: Conversation, renderer: Renderer, number: int, content: str) -> Rendered | None:
    """The conversation with another content in one message; None if the template refuses it."""
    messages = messages_of(conversation)
    messages[number] = {**messages[number], "content": content}
    is_open = messages[-1]["role"] != ASSISTANT
    try:
        return renderer(messages, add_generation_prompt=is_open, **conversation.fields)
    except RowRefused:
        return None


def _lost_questions(conversation: Conversation, renderer: Renderer, plain: Rendered) -> Iterator[str]:
    """A note if the content of a message that is not an answer is not in the text: the template drops or changes it."""
    messages = messages_of(conversation)
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
        yield (LEFT_OUT if changed == plain else CHANGED) + turn.role


def _not_written(conversation: Conversation, renderer: Renderer, plain: Rendered, is_open: bool) -> Iterator[str]:
    """A note for each field of the row or of a message without which the template writes the same text.

    Raises:
        RowRefused: If that is true of tool calls.
    """
    messages = messages_of(conversation)

    def same(changed: list[Message], variables: dict[str, object]) -> bool:
        try:
            return renderer(changed, add_generation_prompt=is_open, **variables) == plain
        except RowRefused:
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
                raise RowRefused(f"the chat template of {renderer.where} does not write tool_calls", conversation.where)
            yield NOT_WRITTEN + key


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)
