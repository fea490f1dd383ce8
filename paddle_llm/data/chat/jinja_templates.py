"""Chooses the chat template of a run: a built-in one, the tokenizer's own (Jinja), or a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paddle_llm.config.local_files.chat_templates import (
    DEFAULT,
    TOOL_USE,
    FoundTemplates,
    TrainingTemplate,
    find_templates,
    read_record,
    read_text,
)
from paddle_llm.config.local_files.instruction_data import near
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.forms import built_in_as_jinja
from paddle_llm.data.chat.rendering import Renderer, RowRefused, check_date
from paddle_llm.data.chat.special_text import ordinary_added_tokens, pattern_of
from paddle_llm.data.chat.templates import EOS, TEMPLATES, Piece, Template
from paddle_llm.data.chat.values import special_token_values
from paddle_llm.data.chat.writing import Written, write
from paddle_llm.data.instructions.conversation import calls_as_text
from paddle_llm.data.instructions.formats import ASSISTANT, SYSTEM, Conversation, Turn
from paddle_llm.data.tokenizers.text_codec import TextCodec

AUTO, JINJA = "auto", "jinja"
_SPECIAL_TEXT = "special_tokens_in_content"  # in the settings of a record
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
    ):
        check_date(date)
        self.found, self.date, self._choice = found, date, choice
        self.specials = pattern_of(set(codec.specials) - ordinary)
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
            written = write(conversation, next(iter(self._renderers.values())), specials=self.specials)
            written = write(asked, next(iter(self._renderers.values())), specials=self.specials)
        except RowRefused:
            return (Piece(EOS, is_special=True),)
        if not written.answers or not written.answers[-1].is_ended or self.specials is None:
            return (Piece(EOS, is_special=True),)
        answer = written.answers[-1]
        ends = self.specials.findall(written.text, answer.begin, answer.end)
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

    def write(self, conversation: Conversation, protect: bool = True) -> Written:
        """Render a conversation and locate its answers.

        Args:
            conversation: The conversation.
            protect: Whether special-token text in content stays text.

        Raises:
            RowRefused: If the template cannot render it.
        """
        renderer = self.renderer(conversation)
        try:
            return write(conversation, renderer, specials=self.specials, protect=protect)
        except RowRefused as error:
            textual = calls_as_text(conversation)
            if textual is not conversation:
                return self.write(textual, protect)
            raise RowRefused(error.reason, conversation.where) from error

    def truncatable_prompts(self, conversation: Conversation) -> list[list[Piece]] | None:
        """Return the text before each answer with the questions as separate pieces; None if they cannot be separated."""
        rounds = conversation.rounds()
        turns = tuple(
            t if t.role in (SYSTEM, ASSISTANT) else replace(t, content=_PLACEHOLDER, input="")
            for t in conversation.turns
        )
        try:
            whole, template_only = self.write(conversation), self.write(replace(conversation, turns=turns))
        except RowRefused:
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


@dataclass(frozen=True)
class Chosen:
    """A template and the reason for its choice.

    Attributes:
        template: The template.
        why: Reason, for messages.
        codec: Codec of the tokenizer.
        special_text_as: "tokens" if the model was trained with special-token text in content as special tokens.
    """

    template: Template | JinjaTemplate
    why: str
    codec: TextCodec | None = field(default=None, repr=False)
    special_text_as: str = "text"

    @property
    def notices(self) -> list[str]:
        """Lines that inform the user about the template."""
        return self.template.notices if isinstance(self.template, JinjaTemplate) else []

    def as_trained(self, special_text_as: str = "text") -> TrainingTemplate:
        """Return the template as it is saved with the weights; a built-in one in its Jinja form.

        Args:
            special_text_as: How special-token text in content was encoded.
        """
        settings = {} if special_text_as == "text" else {_SPECIAL_TEXT: special_text_as}
        if isinstance(self.template, JinjaTemplate):
            kept = self.template.as_trained()
            return replace(kept, settings={**kept.settings, **settings})
        assert self.codec is not None
        source = built_in_as_jinja(self.template.name, self.codec)
        return TrainingTemplate(self.template.name, {DEFAULT: source}, settings)


def choose_template(
    name: str | None, codec: TextCodec, folder: str | None, *, date: str | None = None, trained: str | None = None
) -> Chosen:
    """Choose the template of a run.

    Args:
        name: Name of a built-in template; `jinja`: the tokenizer's own; a name in its list; or a file with a Jinja
            template. auto or None: the recorded template of the model's training, else the tokenizer's, else default.
        codec: Codec of the tokenizer.
        folder: Tokenizer folder.
        date: Date for `strftime_now`, YYYY-MM-DD.
        trained: Folder with the record of the training if it is not the tokenizer folder (that of an adapter).

    Raises:
        UserError: If the name is unknown, the tokenizer lacks a special token that the template needs, or the template
            found is not the recorded one.
    """
    if name in TEMPLATES:
        return _built_in(name, codec, "as requested")
    requested = None if name in (None, AUTO, JINJA) else str(name)
    record_folder = trained or folder
    if requested is None:
        record = read_record(record_folder)
        special = (record.settings if record else {}).get(_SPECIAL_TEXT, "text")
        if record is not None and record.name in TEMPLATES and name != JINJA:
            return replace(_built_in(record.name, codec, "as in the model's training"), special_text_as=special)
        date = date or (record.settings.get("date") if record else None)
        found = find_templates(record_folder) or find_templates(folder)
        if found is None and name == JINJA:
            raise UserError(
                f"--chat_template jinja: {folder} has no chat template. Use a built-in template or a file."
            )
        if found is None:
            return _built_in("default", codec, "the tokenizer has no chat template")
        why = "as in the model's training" if record is not None else "the tokenizer's own chat template"
        return replace(_jinja(found, codec, folder, date, None, why), special_text_as=special)
    found = None if os.path.isfile(requested) else find_templates(folder)
    choice = requested.removeprefix(f"{JINJA}:")
    if found is not None and choice in found.by_name:
        return _jinja(found, codec, folder, date, choice, "as requested")
    if os.path.isfile(requested):
        source = FoundTemplates({DEFAULT: read_text(Path(requested))}, requested)
        return _jinja(source, codec, folder, date, None, "as requested")
    raise _unknown(requested, folder)


def _built_in(name: str, codec: TextCodec, why: str) -> Chosen:
    template = TEMPLATES[name]
    _require_special_tokens(template, codec)
    return Chosen(template, why, codec)


def _jinja(
    found: FoundTemplates, codec: TextCodec, folder: str | None, date: str | None, choice: str | None, why: str
) -> Chosen:
    values = special_token_values(codec, folder)
    named = {token for value in values.values() for token in (value if isinstance(value, list) else [value])}
    ordinary = ordinary_added_tokens(folder) - named  # an eos_token is special, even if its entry says otherwise
    template = JinjaTemplate(found, values, codec, choice=choice, date=date, ordinary=ordinary)
    return Chosen(template, why, codec)


def names_a_file(name: str | None) -> bool:
    """Return whether a --chat_template is the path of a template file."""
    return name is not None and name not in (AUTO, JINJA, *TEMPLATES)


def check_template(name: str, folder: str | None = None) -> None:
    """Check, without a tokenizer, that a --chat_template is the name of a template or a file.

    Args:
        name: Value of --chat_template.
        folder: Tokenizer folder, whose list of templates may have the name.

    Raises:
        UserError: If it is neither.
    """
    if name in (AUTO, JINJA, *TEMPLATES) or os.path.isfile(name):
        return
    found = find_templates(folder)
    if found is None or name.removeprefix(f"{JINJA}:") not in found.by_name:
        raise _unknown(name, folder)


def _unknown(name: str, folder: str | None) -> UserError:
    found = find_templates(folder)
    known = tuple(dict.fromkeys((AUTO, *TEMPLATES, JINJA, *(found.by_name if found else ()))))
    return UserError(f"--chat_template {name}: not a file and not one of {', '.join(known)}.{near(name, *known)}")


def _require_special_tokens(template: Template, codec: TextCodec) -> None:
    turns = (Turn("system", "s"), Turn("user", "a"), Turn(ASSISTANT, "b"))
    rounds = template.render(Conversation(turns))
    needed = {p.text for r in rounds for p in [*r.prompt, *(r.answer or [])] if p.is_special}
    missing = sorted(name for name in needed - {PREFIX, BOS, EOS} if codec.special_id(name) is None)
    if EOS in needed and codec.eos_id is None:
        missing.append("an EOS token")
    if BOS in needed and codec.bos_id is None:
        missing.append("a BOS token")
    if missing:
        raise UserError(
            f"--chat_template {template.name}: the tokenizer {codec.name} lacks {', '.join(missing)}. Use the template "
            "that the model was trained with, or `default`."
        )
