"""Renders Jinja chat templates with the code of transformers (4.55, utils/chat_template_utils.py).

One difference: in transformers `strftime_now` returns today's date. Here it returns a date that the user sets, and it
is an error without one, since a sample must not depend on the day.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from types import ModuleType
from typing import Any

import jinja2

from paddle_llm.core.errors import UserError
from paddle_llm.core.transformers_import import import_transformers

DATE_FLAG = "--chat_template_date"
DATE_FORMAT = "%Y-%m-%d"
_TESTS_STRFTIME = re.compile(r"strftime_now\s+is\s+(not\s+)?defined")
_GENERATION_BLOCK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)


class RowRejected(UserError):
    """A conversation that a template cannot render.

    Attributes:
        reason: Reason without the row, so that equal reasons can be counted.
        where: File and line of the row.
    """

    def __init__(self, reason: str, where: str = "") -> None:
        self.reason, self.where = reason, where
        super().__init__(f"{where}: {reason}" if where else reason)


@dataclass(frozen=True)
class RenderedText:
    """A rendered conversation.

    Attributes:
        text: The text.
        marked: Begin and end, in characters, of each {% generation %} block.
    """

    text: str
    marked: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Renderer:
    """A Jinja chat template with the variables of a tokenizer.

    Attributes:
        source: The template.
        where: Name of its file, for messages.
        values: Special tokens by name (bos_token, eos_token ...); a token that the tokenizer lacks is undefined.
        date: Date for `strftime_now`, YYYY-MM-DD; None makes calling it an error.

    Raises:
        UserError: If the source is not valid Jinja.
    """

    source: str
    where: str
    values: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None

    def __post_init__(self) -> None:
        _compile(self.source, self.where)

    @property
    def marks_answers(self) -> bool:
        """Whether the template marks the assistant's text with {% generation %}."""
        return _GENERATION_BLOCK.search(_COMMENT.sub("", self.source)) is not None

    @property
    def tests_strftime(self) -> bool:
        """Whether the template tests `strftime_now is defined`, so that it has a default date."""
        return _TESTS_STRFTIME.search(self.source) is not None

    def __call__(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False, **variables: Any
    ) -> RenderedText:
        """Render messages.

        Args:
            messages: The messages.
            add_generation_prompt: Whether to end with the prompt for an answer.
            variables: Further variables; `tools` and `documents` default to None, as in `apply_chat_template`.

        Raises:
            RowRejected: If the template raises an exception or uses something that the sandbox forbids.
            UserError: If it calls `strftime_now` and no date is set.
        """
        render_marked = _transformers_rendering()._render_with_assistant_indices
        given = {"tools": None, "documents": None, **self.values, **variables}
        tools, documents = given.pop("tools"), given.pop("documents")
        given["strftime_now"] = self._strftime()
        compiled = _compile(self.source, self.where)
        try:
            if self.marks_answers:
                text, spans = render_marked(compiled, messages, tools, documents, add_generation_prompt, **given)
                return RenderedText(text, tuple(spans))
            text = compiled.render(
                messages=messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                **given,
            )
            return RenderedText(text)
        except UserError:
            raise
        except Exception as error:  # a template may raise any exception
            raise RowRejected(
                f"the chat template of {self.where} rejects it: {type(error).__name__}: {error}"
            ) from error

    def _strftime(self) -> Callable[[str], str] | jinja2.Undefined:
        if self.date is not None:
            return datetime.strptime(self.date, DATE_FORMAT).strftime
        return jinja2.Undefined(name="strftime_now") if self.tests_strftime else _strftime_without_date(self.where)


def check_date(date: str | None) -> None:
    """Check the format of a date for `strftime_now`.

    Raises:
        UserError: If it is not written as YYYY-MM-DD.
    """
    try:
        if date is not None:
            datetime.strptime(date, DATE_FORMAT)
    except ValueError:
        raise UserError(f"{DATE_FLAG} {date}: not a date. Write it as YYYY-MM-DD.") from None


def _strftime_without_date(where: str) -> Callable[[str], str]:
    def strftime_now(format: str) -> str:
        raise UserError(
            f"chat template of {where}: it inserts today's date (strftime_now), so samples would depend on the day. "
            f"Set a fixed date with {DATE_FLAG} YYYY-MM-DD, or choose another template with --chat_template."
        )

    return strftime_now


def _transformers_rendering() -> ModuleType:
    import_transformers()
    return importlib.import_module("transformers.utils.chat_template_utils")


@lru_cache(maxsize=64)
def _compile(source: str, where: str) -> jinja2.Template:
    try:
        return _transformers_rendering()._compile_jinja_template(source)
    except jinja2.TemplateError as error:
        line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise UserError(f"chat template of {where}: not valid Jinja{line}: {error}. Correct it.") from error
    except (SyntaxError, RecursionError) as error:  # in Jinja's generated Python: {% continue %} outside a loop
        raise UserError(f"chat template of {where}: not valid Jinja: {error}. Correct it.") from error
