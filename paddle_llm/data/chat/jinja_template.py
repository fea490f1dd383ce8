"""The Jinja chat templates of a tokenizer or file, as one template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paddle_llm.config.local_files.chat_templates import (
    DEFAULT,
    TOOL_USE,
    FoundTemplates,
    TrainingTemplate,
)
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.jinja_rendering import RenderedConversation, render_conversation
from paddle_llm.data.chat.renderer import Renderer, RowRejected, check_date
from paddle_llm.data.chat.special_text import special_pattern
from paddle_llm.data.chat.templates import EOS, Piece
from paddle_llm.data.instructions.conversation import ASSISTANT, SYSTEM, Conversation, Turn, calls_as_text
from paddle_llm.data.tokenizers.text_codec import TextCodec

JINJA = "jinja"
_PLACEHOLDER = "\ue0f2question\ue0f2"


class JinjaTemplate:
    """One or more Jinja chat templates; for each conversation, transformers' rule chooses one of them.

    Args:
        found: The templates by name.
        values: Further variables: bos_token, eos_token and the tokenizer's other special tokens.
        codec: Codec of the tokenizer.
        choice: Name of the template for all conversations; None for transformers' rule.
        date: Date returned by `strftime_now`; None makes calling it an error.
        ordinary: Added tokens that are not special.

    Raises:
        UserError: If a template is not valid Jinja, or none can be chosen.
    """

    name = JINJA

    def __init__(
        self,
        found: FoundTemplates,
        values: Mapping[str, Any],
        codec: TextCodec,
        *,
        choice: str | None = None,
        date: str | None = None,
        ordinary: frozenset[str] = frozenset(),
    ) -> None:
        check_date(date)
        self.found, self.date, self._choice = found, date, choice
        self.specials = special_pattern(set(codec.specials) - ordinary)
        used = [choice] if choice else [name for name in (DEFAULT, TOOL_USE) if name in found.by_name]
        if not used:
            raise UserError(
                f"{found.where}: several chat templates, none of which is named default: {', '.join(found.by_name)}. "
                f"Choose one, for example with --chat_template {next(iter(found.by_name))}."
            )
        self._renderers = {
            name: Renderer(found.by_name[name], _label(found, name), values, date) for name in used if name is not None
        }
        for renderer in self._renderers.values():
            _require_content(renderer)

    @property
    def stops(self) -> tuple[Piece, ...]:
        """The token that ends a text answer; EOS if the template writes none."""
        conversation = Conversation((Turn("user", "a"), Turn(ASSISTANT, "b")))
        try:
            rendered = render_conversation(conversation, next(iter(self._renderers.values())), specials=self.specials)
        except RowRejected:
            return (Piece(EOS, is_special=True),)
        if not rendered.answers or not rendered.answers[-1].is_ended or self.specials is None:
            return (Piece(EOS, is_special=True),)
        answer = rendered.answers[-1]
        ends = self.specials.findall(rendered.text, answer.begin, answer.end)
        return (Piece(ends[-1], is_special=True),)

    @property
    def notices(self) -> list[str]:
        """Lines that inform the user about the template before it is used."""
        lines = []
        for renderer in self._renderers.values():
            if renderer.tests_strftime and self.date is None:
                lines.append(
                    f"the chat template of {renderer.where} writes today's date if strftime_now is defined. It is left "
                    "undefined, so that samples do not depend on the day: the template's default date is written. Set "
                    "another date with --chat_template_date."
                )
        if len(self.found.by_name) > 1:
            rule = self._choice or ", ".join(
                {DEFAULT: DEFAULT, TOOL_USE: f"{TOOL_USE} for rows with tools"}[name] for name in self._renderers
            )
            lines.append(f"chat templates of {self.found.where}: {', '.join(self.found.by_name)}; used: {rule}")
        lines += [f"{file} also contains a chat template; transformers does not read it" for file in self.found.ignored]
        return lines

    def renderer(self, conversation: Conversation) -> Renderer:
        """Return the template for a conversation.

        Raises:
            UserError: If no template is named `default` and the conversation has no tools.
        """
        name = self._choice or self.found.choose(conversation.fields.get("tools") is not None)
        if name is None:
            raise UserError(
                f"{conversation.where}: no chat template for a row without tools: {self.found.where} has only "
                f"{', '.join(self.found.by_name)}, none named default. Choose one with --chat_template."
            )
        return self._renderers[name]

    def render(self, conversation: Conversation, protect: bool = True) -> RenderedConversation:
        """Render a conversation and locate its answers.

        Args:
            conversation: The conversation.
            protect: Whether special-token text in content stays text.

        Raises:
            RowRejected: If the template cannot render it.
        """
        renderer = self.renderer(conversation)
        try:
            return render_conversation(conversation, renderer, specials=self.specials, protect=protect)
        except RowRejected as error:
            textual = calls_as_text(conversation)
            if textual is not conversation:
                return self.render(textual, protect)
            raise RowRejected(error.reason, conversation.where) from error

    def truncatable_prompts(self, conversation: Conversation) -> list[list[Piece]] | None:
        """Return the text before each answer with the questions as separate pieces; None if that is not possible."""
        rounds = conversation.rounds()
        turns = tuple(
            t if t.role in (SYSTEM, ASSISTANT) else replace(t, content=_PLACEHOLDER, input="")
            for t in conversation.turns
        )
        try:
            whole, template_only = self.render(conversation), self.render(replace(conversation, turns=turns))
        except RowRejected:
            return None
        starts = [0, *(answer.end for answer in template_only.answers)]
        ends = [answer.begin for answer in template_only.answers]
        ends += [len(template_only.text)] if template_only.is_open else []
        if len(ends) != len(rounds):
            return None
        prompts = []
        for begin, end, part in zip(starts, ends, rounds, strict=False):
            texts = template_only.text[begin:end].split(_PLACEHOLDER)
            if len(texts) != len(part.questions) + 1:
                return None
            prompt = [Piece(texts[0], parses_specials=True)]
            for turn, text in zip(part.questions, texts[1:], strict=True):
                content = turn.text if turn.text in whole.text else turn.text.strip()  # some templates strip it
                prompt += [Piece(content, is_question=True), Piece(text, parses_specials=True)]
            prompts.append(prompt)
        return prompts

    def as_trained(self) -> TrainingTemplate:
        """Return the template as it is saved with the weights."""
        templates = {DEFAULT: self.found.by_name[self._choice]} if self._choice else dict(self.found.by_name)
        return TrainingTemplate(JINJA, templates, {"date": self.date} if self.date else {})


def _require_content(renderer: Renderer) -> None:
    """Check that a template writes the content of a conversation, and not, for example, the name of a file.

    Raises:
        UserError: If it writes neither the question nor the answer.
    """
    question, answer = "zebra", "quartz"
    try:
        text = renderer([{"role": "user", "content": question}, {"role": ASSISTANT, "content": answer}]).text.lower()
    except UserError:
        return  # reported for the rows
    if question not in text and answer not in text:
        raise UserError(
            f"chat template of {renderer.where}: it writes neither the question nor the answer of a conversation: it is "
            "empty, is the name of a file, or accepts only lists of parts as content. Correct it, or use another --chat_template."
        )


def _label(found: FoundTemplates, name: str) -> str:
    return found.where if len(found.by_name) == 1 else f"{found.where} ({name})"
