"""Locates the assistant's answers in a rendered conversation.

If a template marks answers with {% generation %}, its marks are used. Otherwise the conversation is rendered up to each
answer, with the generation prompt, and up to the answer's end: the text that the second rendering adds is the answer.
If later messages change what the template writes for earlier ones (dropped reasoning, a moved system text), the answer
is located by markers around its content.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from paddle_llm.data.chat.renderer import RowRejected
from paddle_llm.data.chat.special_text import unused_characters
from paddle_llm.data.instructions.conversation import ASSISTANT

Message = dict[str, Any]
Render = Callable[[list[Message], bool], str]


@dataclass(frozen=True)
class Answer:
    """Span of an answer.

    Attributes:
        begin: Position of its first character.
        end: Position after its last character, including the end token.
        message: Number of the message.
        is_ended: Whether the template ends it with a special token.
    """

    begin: int
    end: int
    message: int
    is_ended: bool


_SHARED = 8  # two prompts end in the same way if this many characters are equal
# Kinds of notes about the last answer.
PROMPT_DIFFERS, BLOCK_NOT_OPENED, HEADER_LEARNED = "prompt_differs", "block_not_opened", "header_learned"


class NotLocated(Exception):
    """An answer cannot be located in the rendering."""


class AnswerFinder:
    """Locates answers in the renderings of one conversation.

    Args:
        render: Function from messages and add_generation_prompt to text.
        messages: The conversation.
        whole: Its rendering.
        specials: Pattern of the special tokens that may end an answer.

    Attributes:
        notes: Kinds of notes about the last answer.
    """

    # Variables: `prompt` is the rendering before an answer with the generation prompt; `answered` is the rendering that
    # ends with the answer; `whole` is the rendering of all messages.

    def __init__(self, render: Render, messages: list[Message], whole: str, specials: re.Pattern[str] | None) -> None:
        self._render, self._messages, self._whole, self._specials = render, messages, whole, specials
        self.notes: list[str] = []
        unused = unused_characters(f"{whole}{messages}", 3)
        self._begin, self._end, self._probe_content = unused[0], unused[1], unused[2]

    def find(self) -> tuple[list[Answer], list[int]]:
        """Return the answers, and the numbers of earlier assistant messages that cannot be located.

        Raises:
            NotLocated: If the last answer cannot be located.
        """
        found: list[Answer] = []
        missing: list[int] = []
        numbers = [number for number, message in enumerate(self._messages) if message["role"] == ASSISTANT]
        at = 0
        for number in numbers:
            try:
                answer = self._answer(number)
                if answer.begin < at:
                    raise NotLocated
            except (NotLocated, RowRejected):
                if number == numbers[-1]:
                    raise
                missing.append(number)
                continue
            found.append(answer)
            at = answer.end
        return found, missing

    def after_prompt(self, number: int) -> tuple[str, Answer]:
        """Return the generation prompt followed by the last answer, and the answer's span.

        Raises:
            NotLocated: If the template does not write the answer's content.
        """
        prompt = self._render(self._messages[:number], True)
        answered = self._render(self._messages[: number + 1], False)
        _, end = self._content_span(self._messages[: number + 1], number, answered)
        begin = self._answer_begin(number, prompt, answered)
        if begin is None:
            raise NotLocated
        stop, is_ended = self._answer_end(answered, begin, end, number)
        text = prompt + answered[begin:stop]
        return text, Answer(len(prompt), len(text), number, is_ended)

    # ---- one answer --------------------------------------------------------------------------------------------------

    def _answer(self, number: int) -> Answer:
        """Locate the answer of one message.

        Raises:
            NotLocated: If that is not possible.
        """
        whole, is_last = self._whole, number == len(self._messages) - 1
        prompt = self._render(self._messages[:number], True)
        answered = whole if is_last else self._render(self._messages[: number + 1], False)
        begin = len(prompt) if answered.startswith(prompt) else self._common_header(number, prompt, answered)
        if is_last and (begin is None or begin < len(prompt)):
            self.notes.append(PROMPT_DIFFERS if begin is None else BLOCK_NOT_OPENED)
        elif is_last and self._writes_header(number, prompt, answered):
            self.notes.append(HEADER_LEARNED)
        if begin is not None and whole.startswith(answered[:begin]):
            # Text that is added only at the end of a conversation (an EOS) is not part of the answer.
            stop, is_ended = self._answer_end(answered, begin, self._content_end(answered, begin, number), number)
            if whole.startswith(answered[:stop]):
                return Answer(begin, stop, number, is_ended)
        return self._by_markers(number, begin, answered)

    def _writes_header(self, number: int, prompt: str, answered: str) -> bool:
        """Return whether a template without generation prompt writes text between a prompt and the answer's content."""
        content = self._messages[number].get("content")
        stripped = content.strip() if isinstance(content, str) else ""
        header, found, _ = answered[len(prompt) :].partition(stripped) if stripped else ("", "", "")
        return bool(found and header.strip()) and prompt == self._render(self._messages[:number], False)

    def _common_header(self, number: int, prompt: str, answered: str) -> int | None:
        """Return where an answer begins that lacks a block opened by the generation prompt.

        None if `prompt` and `answered` differ in another way.
        """
        probe = self._probe(number)
        begin = len(os.path.commonprefix([prompt, probe, answered]))
        base = self._render(self._messages[:number], False)
        return begin if prompt.startswith(base) and begin >= len(base) else None

    def _probe(self, number: int) -> str:
        """Render the conversation up to an answer that consists of one unlikely character."""
        message = {"role": ASSISTANT, "content": self._probe_content}
        return self._render([*self._messages[:number], message], False)

    def _answer_begin(self, number: int, prompt: str, answered: str) -> int | None:
        """Return where an answer begins, from the generation prompt or else from its content."""
        if answered.startswith(prompt):
            return len(prompt)
        begin, _ = self._content_span(self._messages[: number + 1], number, answered)
        return begin

    def _by_markers(self, number: int, begin: int | None, answered: str) -> Answer:
        """Locate an answer in the whole rendering by markers around its content.

        Raises:
            NotLocated: If the template changes the content.
        """
        whole = self._whole
        if begin is None or not whole.startswith(answered[:begin]):
            begin = None
        first, last = self._content_span(self._messages, number, whole)
        if begin is None:
            begin = first
            if begin is None:
                raise NotLocated
            prompt = self._render(self._messages[:number], True)
            own_first, _ = self._content_span(self._messages[: number + 1], number, answered)
            lead = (
                answered[len(prompt) : own_first]
                if answered.startswith(prompt)
                else self._text_after_prompt(number, prompt)
            )
            if lead and whole[:begin].endswith(lead):
                begin -= len(lead)
        if last is None or last < begin:
            raise NotLocated
        _, own_last = self._content_span(self._messages[: number + 1], number, answered)
        if own_last is None:
            raise NotLocated
        stop, is_ended = self._answer_end(answered, own_last, own_last, number)
        tail = answered[own_last:stop]
        if not whole.startswith(tail, last):
            raise NotLocated
        return Answer(begin, last + len(tail), number, is_ended)

    def _text_after_prompt(self, number: int, prompt: str) -> str:
        """Return the text that a template writes between a generation prompt that it changes and the content.

        It is the shortest text before which both renderings end in the same way.
        """
        probe = self._probe(number)
        head = probe[: probe.find(self._probe_content)]
        shared = prompt[-_SHARED:]
        return next((head[at:] for at in range(len(head), -1, -1) if shared and head[:at].endswith(shared)), "")

    def _content_span(self, messages: list[Message], number: int, plain: str) -> tuple[int | None, int | None]:
        """Return begin and end of an answer's content in a rendering, each None if unknown."""
        content = messages[number].get("content")
        if not isinstance(content, str):
            return None, None
        spans: list[int | None] = []
        for mark, marked in ((self._begin, self._begin + content), (self._end, content + self._end)):
            changed = [*messages[:number], {**messages[number], "content": marked}, *messages[number + 1 :]]
            try:
                text = self._render(changed, not messages or messages[-1]["role"] != ASSISTANT)
            except RowRejected:
                spans.append(None)
                continue
            spans.append(_marker_in(text, plain, mark, mark == self._begin, len(content) - len(content.strip())))
        return spans[0], spans[1]

    # ---- end of an answer --------------------------------------------------------------------------------------------

    def _content_end(self, answered: str, begin: int, number: int) -> int:
        content = self._messages[number].get("content")
        stripped = content.strip() if isinstance(content, str) else ""
        at = answered.find(stripped, begin) if stripped else -1
        return at + len(stripped) if at >= 0 else begin

    def _answer_end(self, answered: str, begin: int, content_end: int | None, number: int) -> tuple[int, bool]:
        """Return where an answer ends in the rendering that ends with it, and whether a special token ends it.

        An answer ends with the first special token after its content. Tool calls may contain special tokens: after
        them it is the last special token that also ends a text answer, or else the last one.
        """
        at = begin if content_end is None else content_end
        marks = list(self._specials.finditer(answered, at)) if self._specials else []
        if not marks:
            return max(len(answered.rstrip()), min(at, len(answered))), False
        message = self._messages[number]
        if set(message) <= {"role", "content"} and at > begin:
            return marks[0].end(), True
        usual = self._usual_end(number)
        same = [mark for mark in marks if mark[0] == usual]
        return (same or marks)[-1].end(), True

    def _usual_end(self, number: int) -> str | None:
        try:
            probe = self._probe(number)
        except RowRejected:
            return None
        mark = self._specials.search(probe, probe.find(self._probe_content)) if self._specials else None
        return mark[0] if mark else None


def _marker_in(text: str, plain: str, mark: str, is_begin: bool, blanks: int) -> int | None:
    """Return the position of a marker in the rendering without it; None if it changes more than stripped blanks."""
    at = text.find(mark)
    if at < 0 or text.count(mark) != 1:
        return None
    for kept in range(blanks + 1):
        if is_begin and text[:at] + text[at + 1 + kept :] == plain:
            return at
        if not is_begin and text[: at - kept] + text[at + 1 :] == plain:
            return at - kept
    return None


def marked_answers(
    text: str,
    spans: Sequence[tuple[int, int]],
    messages: list[Message],
    render: Render,
    specials: re.Pattern[str] | None,
) -> tuple[list[Answer], bool]:
    """Return the answers of a template with {% generation %}, and whether an unmarked end token was included.

    Raises:
        RowRejected: If the message of a block is unknown.
    """
    numbers = [number for number, message in enumerate(messages) if message["role"] == ASSISTANT]
    filled = [(begin, end) for begin, end in spans if end > begin]
    if len(spans) == len(numbers):
        owners = [number for number, (begin, end) in zip(numbers, spans, strict=True) if end > begin]
    else:
        ends = [(len(render(messages[: number + 1], False)), number) for number in numbers]
        owners = [next((number for length, number in ends if end <= length), numbers[-1]) for _, end in filled]
    answers, extended = [], False
    for (begin, end), owner in zip(filled, owners, strict=True):
        last = begin + len(text[begin:end].rstrip())  # a block may include the newline after the end token
        is_ended = specials is not None and any(match.end() == last for match in specials.finditer(text, begin, end))
        if not is_ended and specials is not None:
            mark = specials.match(text, end)
            if mark and not any(begin <= other < mark.end() for other, _ in filled if other > begin):
                end, is_ended, extended = mark.end(), True, True
        answers.append(Answer(begin, end, owner, is_ended))
    return answers, extended
