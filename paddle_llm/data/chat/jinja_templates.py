"""Which chat template a run uses: a built-in one, the tokenizer's (Jinja), or a file."""

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
_HOLE = "\ue0f2question\ue0f2"


class JinjaTemplate:
    """One or several Jinja chat templates, of which transformers' rule takes one for each conversation.

    Args:
        found: The templates by name.
        values: Variables beside the messages: bos_token, eos_token and the tokenizer's further special tokens.
        codec: The tokenizer.
        choice: Name of the one to use for every conversation; None for transformers' rule.
        date: Date that `strftime_now` writes; None to refuse a template that calls it.
        ordinary: Added tokens that are not special.

    Raises:
        UserError: If one of them is not valid Jinja, or none can be chosen.
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
                f"{found.where} has several chat templates and none is named default: {', '.join(found.by_name)}. "
                f"Name one with --chat_template {next(iter(found.by_name))}."
            )
        self._renderers = {
            name: Renderer(found.by_name[name], _label(found, name), values, date) for name in used if name is not None
        }
        for renderer in self._renderers.values():
            _require_content(renderer)

    @property
    def stops(self) -> tuple[Piece, ...]:
        """The token that ends an answer of text; EOS if the template writes none."""
        asked = Conversation((Turn("user", "a"), Turn(ASSISTANT, "b")))
        try:
            written = write(asked, next(iter(self._renderers.values())), specials=self.specials)
        except RowRefused:
            return (Piece(EOS, mark=True),)
        if not written.answers or not written.answers[-1].is_ended or self.specials is None:
            return (Piece(EOS, mark=True),)
        answer = written.answers[-1]
        marks = self.specials.findall(written.text, answer.begin, answer.end)
        return (Piece(marks[-1], mark=True),)

    @property
    def notices(self) -> list[str]:
        """What a user should know about the template before it is used, one line each."""
        lines = []
        for renderer in self._renderers.values():
            if renderer.tests_clock and self.date is None:
                lines.append(
                    f"the chat template of {renderer.where} writes today's date where strftime_now is defined: it is not, so that "
                    "samples do not depend on the day; the template's own fixed date is written (another: --chat_template_date)"
                )
        if len(self.found.by_name) > 1:
            rule = self._choice or ", ".join(
                {DEFAULT: DEFAULT, TOOL_USE: f"{TOOL_USE} for rows with tools"}[name] for name in self._renderers
            )
            lines.append(f"chat templates of {self.found.where}: {', '.join(self.found.by_name)}; used: {rule}")
        lines += [f"{file} also holds a chat template; transformers does not read it" for file in self.found.ignored]
        return lines

    def renderer(self, conversation: Conversation) -> Renderer:
        """The template that a conversation is written with.

        Raises:
            UserError: If no template has the name `default` and the conversation has no tools.
        """
        name = self._choice or self.found.choose(conversation.fields.get("tools") is not None)
        if name is None:
            raise UserError(
                f"{conversation.where}: has no tools, and {self.found.where} has no chat template named default, only "
                f"{', '.join(self.found.by_name)}. Name one with --chat_template."
            )
        return self._renderers[name]

    def write(self, conversation: Conversation, protect: bool = True) -> Written:
        """The text of a conversation and the spans of its answers.

        Args:
            protect: Whether special-token text stays text in content.

        Raises:
            RowRefused: If the template cannot write it.
        """
        renderer = self.renderer(conversation)
        try:
            return write(conversation, renderer, specials=self.specials, protect=protect)
        except RowRefused as error:
            textual = calls_as_text(conversation)
            if textual is not conversation:
                return self.write(textual, protect)
            raise RowRefused(error.reason, conversation.where) from error

    def cuttable_prompts(self, conversation: Conversation) -> list[list[Piece]] | None:
        """What is before each answer, with the questions in separate pieces; None if they cannot be told apart."""
        rounds = conversation.rounds()
        turns = tuple(
            t if t.role in (SYSTEM, ASSISTANT) else replace(t, content=_HOLE, input="") for t in conversation.turns
        )
        try:
            whole, hollow = self.write(conversation), self.write(replace(conversation, turns=turns))
        except RowRefused:
            return None
        starts = [0, *(answer.end for answer in hollow.answers)]
        ends = [answer.begin for answer in hollow.answers] + ([len(hollow.text)] if hollow.is_open else [])
        if len(ends) != len(rounds):
            return None
        made = []
        for begin, end, part in zip(starts, ends, rounds, strict=False):
            texts = hollow.text[begin:end].split(_HOLE)
            if len(texts) != len(part.asked) + 1:
                return None
            prompt = [Piece(texts[0], spelled=True)]
            for turn, text in zip(part.asked, texts[1:], strict=True):
                content = turn.text if turn.text in whole.text else turn.text.strip()  # some templates strip it
                prompt += [Piece(content, question=True), Piece(text, spelled=True)]
            made.append(prompt)
        return made

    def as_trained(self) -> TrainingTemplate:
        """The template as a folder keeps it beside the weights."""
        templates = {DEFAULT: self.found.by_name[self._choice]} if self._choice else dict(self.found.by_name)
        return TrainingTemplate(JINJA, templates, {"date": self.date} if self.date else {})


def _require_content(renderer: Renderer) -> None:
    """Raise UserError if a template writes nothing of a conversation: an empty text, or the name of a file in its place."""
    question, answer = "zebra", "quartz"
    try:
        text = renderer([{"role": "user", "content": question}, {"role": ASSISTANT, "content": answer}]).text.lower()
    except UserError:
        return  # reported for the rows
    if question not in text and answer not in text:
        raise UserError(
            f"The chat template of {renderer.where} writes neither the question nor the answer of a conversation: it is empty, it is the "
            "name of a file, or it takes content as a list of parts only. Correct it, or name another template with --chat_template."
        )


def _label(found: FoundTemplates, name: str) -> str:
    return found.where if len(found.by_name) == 1 else f"{found.where} ({name})"


@dataclass(frozen=True)
class Chosen:
    """A template and why it was taken.

    Attributes:
        template: The template.
        why: The reason, for messages.
        codec: The tokenizer.
        special_text_as: "tokens" if the model was trained with special-token text in content as special tokens.
    """

    template: Template | JinjaTemplate
    why: str
    codec: TextCodec | None = field(default=None, repr=False)
    special_text_as: str = "text"

    @property
    def notices(self) -> list[str]:
        """What a user should know about it, one line each."""
        return self.template.notices if isinstance(self.template, JinjaTemplate) else []

    def as_trained(self, special_text_as: str = "text") -> TrainingTemplate:
        """The template as a folder keeps it beside the weights: a built-in one in its Jinja form.

        Args:
            special_text_as: What special-token text in content became.
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
    """The template of a run.

    Args:
        name: A built-in one; `jinja`: the tokenizer's; a name in its list; a file with Jinja in it; auto or None: the one that the
            model was trained with where that is recorded, else the tokenizer's, else default.
        folder: Folder of the tokenizer.
        date: Date for `strftime_now`, YYYY-MM-DD.
        trained: Folder with the record of the training, where it is not the tokenizer's (an adapter's).

    Raises:
        UserError: If the name is unknown, the tokenizer lacks a special token that the template needs, or the template found is not
            the recorded one.
    """
    if name in TEMPLATES:
        return _built_in(name, codec, "as asked for")
    asked = None if name in (None, AUTO, JINJA) else str(name)
    recorded = trained or folder
    if asked is None:
        record = read_record(recorded)
        special = (record.settings if record else {}).get(_SPECIAL_TEXT, "text")
        if record is not None and record.name in TEMPLATES and name != JINJA:
            return replace(_built_in(record.name, codec, "as in the model's training"), special_text_as=special)
        date = date or (record.settings.get("date") if record else None)
        found = find_templates(recorded) or find_templates(folder)
        if found is None and name == JINJA:
            raise UserError(
                f"--chat_template jinja: {folder} has no chat template. Name a built-in template or a file."
            )
        if found is None:
            return _built_in("default", codec, "the tokenizer brings no chat template")
        why = "as in the model's training" if record is not None else "the tokenizer's own chat template"
        return replace(_jinja(found, codec, folder, date, None, why), special_text_as=special)
    found = None if os.path.isfile(asked) else find_templates(folder)
    choice = asked.removeprefix(f"{JINJA}:")
    if found is not None and choice in found.by_name:
        return _jinja(found, codec, folder, date, choice, "as asked for")
    if os.path.isfile(asked):
        source = FoundTemplates({DEFAULT: read_text(Path(asked))}, asked)
        return _jinja(source, codec, folder, date, None, "as asked for")
    raise _unknown(asked, folder)


def _built_in(name: str, codec: TextCodec, why: str) -> Chosen:
    template = TEMPLATES[name]
    _require_marks(template, codec)
    return Chosen(template, why, codec)


def _jinja(
    found: FoundTemplates, codec: TextCodec, folder: str | None, date: str | None, choice: str | None, why: str
) -> Chosen:
    values = special_token_values(codec, folder)
    named = {token for value in values.values() for token in (value if isinstance(value, list) else [value])}
    ordinary = ordinary_added_tokens(folder) - named  # an eos_token is special, whatever its entry says
    template = JinjaTemplate(found, values, codec, choice=choice, date=date, ordinary=ordinary)
    return Chosen(template, why, codec)


def names_a_file(name: str | None) -> bool:
    """Whether a --chat_template is the path of a file with a template in it."""
    return name is not None and name not in (AUTO, JINJA, *TEMPLATES)


def check_template(name: str, folder: str | None = None) -> None:
    """Raise UserError if a --chat_template is not the name of a template and not a file; needs no tokenizer.

    Args:
        folder: Folder of the tokenizer, whose list of templates may have the name.
    """
    if name in (AUTO, JINJA, *TEMPLATES) or os.path.isfile(name):
        return
    found = find_templates(folder)
    if found is None or name.removeprefix(f"{JINJA}:") not in found.by_name:
        raise _unknown(name, folder)


def _unknown(name: str, folder: str | None) -> UserError:
    found = find_templates(folder)
    known = tuple(dict.fromkeys((AUTO, *TEMPLATES, JINJA, *(found.by_name if found else ()))))
    return UserError(f"--chat_template {name}: is none of {', '.join(known)}, and no file.{near(name, *known)}")


def _require_marks(template: Template, codec: TextCodec) -> None:
    turns = (Turn("system", "s"), Turn("user", "a"), Turn(ASSISTANT, "b"))
    needed = {p.text for s in template.speak(Conversation(turns)) for p in [*s.prompt, *(s.answer or [])] if p.mark}
    lacking = sorted(
        name for name in needed if not name.startswith(("<prefix>", "<bos>", "<eos>")) and codec.mark(name) is None
    )
    if "<eos>" in needed and codec.eos_id is None:
        lacking.append("an end of sentence")
    if "<bos>" in needed and codec.bos_id is None:
        lacking.append("a beginning of sentence")
    if lacking:
        raise UserError(
            f"--chat_template {template.name}: needs {', '.join(lacking)}, which the tokenizer {codec.name} does not have. Choose the "
            "template that the model was trained with, or `default`."
        )
