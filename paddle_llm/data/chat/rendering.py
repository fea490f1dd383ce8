"""Jinja chat templates, rendered by transformers' own machinery (transformers 4.55, utils/chat_template_utils.py).

The one difference: `strftime_now` writes the date of the day in transformers. Here it writes a date that the user gives, and is
refused without one, since a sample must not depend on the day.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.core.transformers_import import import_transformers

DATE_FLAG = "--chat_template_date"
DATE_FORMAT = "%Y-%m-%d"
_TESTS_CLOCK = re.compile(r"strftime_now\s+is\s+(not\s+)?defined")
_MARKS_ANSWERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)


class RowRefused(UserError):
    """A conversation that a template cannot write.

    Attributes:
        reason: The reason without the row, so that equal reasons can be counted.
        where: File and line of the row.
    """

    def __init__(self, reason: str, where: str = ""):
        self.reason, self.where = reason, where
        super().__init__(f"{where}: {reason}" if where else reason)


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        text: The text.
        marked: Begin and end of what {% generation %} marks, in characters.
    """

    text: str
    marked: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Renderer:
    """One Jinja source with the variables that a tokenizer gives it.

    Attributes:
        source: The template.
        where: File that it comes from, for messages.
        values: Special tokens by name (bos_token, eos_token ...); one that the tokenizer does not have is undefined.
        date: Date for `strftime_now`, YYYY-MM-DD; None to refuse a template that calls it.

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
        """Whether the template marks the assistant's text by {% generation %}."""
        return _MARKS_ANSWERS.search(_COMMENT.sub("", self.source)) is not None

    @property
    def tests_clock(self) -> bool:
        """Whether the template tests `strftime_now is defined`, and so has a fixed date for a renderer without it."""
        return _TESTS_CLOCK.search(self.source) is not None

    def __call__(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False, **variables: Any
    ) -> Rendered:
        """Render messages.

        Args:
            variables: Further variables; `tools` and `documents` are None by default, as in `apply_chat_template`.

        Raises:
            RowRefused: If the template raises, or uses what the sandbox withholds.
            UserError: If it asks for the date of the day.
        """
        render_marked = _machinery()._render_with_assistant_indices
        given = {"tools": None, "documents": None, **self.values, **variables}
        tools, documents = given.pop("tools"), given.pop("documents")
        given["strftime_now"] = self._clock()
        compiled = _compile(self.source, self.where)
        try:
            if self.marks_answers:
                text, spans = render_marked(compiled, messages, tools, documents, add_generation_prompt, **given)
                return Rendered(text, tuple(spans))
            text = compiled.render(
                messages=messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                **given,
            )
            return Rendered(text)
        except UserError:
            raise
        except Exception as error:  # a template may raise any exception
            raise RowRefused(
                f"the chat template of {self.where} refuses it: {type(error).__name__}: {error}"
            ) from error

    def _clock(self) -> Any:
        if self.date is not None:
            return datetime.strptime(self.date, DATE_FORMAT).strftime
        import jinja2

        return jinja2.Undefined(name="strftime_now") if self.tests_clock else _refuse_clock(self.where)


def check_date(date: str | None) -> None:
    """Raise UserError if a date for `strftime_now` is not written as YYYY-MM-DD."""
    try:
        if date is not None:
            datetime.strptime(date, DATE_FORMAT)
    except ValueError:
        raise UserError(f"{DATE_FLAG} is not a date: {date}. Write it as YYYY-MM-DD.") from None


def _refuse_clock(where: str) -> Callable[[str], str]:
    def strftime_now(format: str) -> str:
        raise UserError(
            f"The chat template of {where} writes today's date (strftime_now), so that a sample would depend on the day on which it is "
            f"made. Give a fixed date with {DATE_FLAG} YYYY-MM-DD, or choose another template with --chat_template."
        )

    return strftime_now


def _machinery() -> Any:
    import_transformers()
    return importlib.import_module("transformers.utils.chat_template_utils")


@lru_cache(maxsize=64)
def _compile(source: str, where: str) -> Any:
    import jinja2

    try:
        return _machinery()._compile_jinja_template(source)
    except jinja2.TemplateError as error:
        line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise UserError(f"The chat template of {where} is not valid Jinja{line}: {error}. Correct it.") from error
    except (SyntaxError, RecursionError) as error:  # of the Python that Jinja makes: {% continue %} outside of a loop
        raise UserError(f"The chat template of {where} is not valid Jinja: {error}. Correct it.") from error
