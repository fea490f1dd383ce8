"""Chooses the chat template of a run: a built-in one, the tokenizer's own (Jinja), or a file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from paddle_llm.config.local_files.chat_templates import (
    DEFAULT,
    FoundTemplates,
    TrainingTemplate,
    find_templates,
    read_record,
    read_text,
)
from paddle_llm.config.local_files.instruction_data import did_you_mean
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.built_in_jinja import built_in_as_jinja
from paddle_llm.data.chat.jinja_template import JINJA, JinjaTemplate
from paddle_llm.data.chat.special_text import ordinary_added_tokens
from paddle_llm.data.chat.template_variables import special_token_variables
from paddle_llm.data.chat.templates import BOS, EOS, PREFIX, TEMPLATES, Template
from paddle_llm.data.instructions.conversation import ASSISTANT, Conversation, Turn
from paddle_llm.data.tokenizers.text_codec import TextCodec

AUTO = "auto"
_SPECIAL_TEXT = "special_tokens_in_content"  # in the settings of a record


@dataclass(frozen=True)
class ChosenTemplate:
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
) -> ChosenTemplate:
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
            raise UserError(f"--chat_template jinja: {folder} has no chat template. Use a built-in template or a file.")
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


def _built_in(name: str, codec: TextCodec, why: str) -> ChosenTemplate:
    template = TEMPLATES[name]
    _require_special_tokens(template, codec)
    return ChosenTemplate(template, why, codec)


def _jinja(
    found: FoundTemplates, codec: TextCodec, folder: str | None, date: str | None, choice: str | None, why: str
) -> ChosenTemplate:
    values = special_token_variables(codec, folder)
    named = {token for value in values.values() for token in (value if isinstance(value, list) else [value])}
    ordinary = ordinary_added_tokens(folder) - named  # an eos_token is special, even if its entry says otherwise
    template = JinjaTemplate(found, values, codec, choice=choice, date=date, ordinary=ordinary)
    return ChosenTemplate(template, why, codec)


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
    return UserError(
        f"--chat_template {name}: not a file and not one of {', '.join(known)}.{did_you_mean(name, *known)}"
    )


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
