"""Jinja templates of records (--prompt_templates), rendered in Jinja's sandbox."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from paddle_llm.core.errors import UserError


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes characters for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache
def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        extensions=[jinja2.ext.loopcontrols], undefined=jinja2.StrictUndefined
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


def compile_template(source: str, where: str) -> jinja2.Template:
    """Compile a template in which an unknown name is an error.

    Args:
        source: The template.
        where: Origin of the template, for messages.

    Raises:
        UserError: If it is not valid Jinja.
    """
    try:
        return _environment().from_string(source)
    except jinja2.TemplateError as error:
        line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise UserError(f"{where}: not valid Jinja{line}: {error}. Correct it.") from error


def render(template: jinja2.Template, values: dict[str, Any]) -> str:
    """Render a template.

    Raises:
        UserError: If the template raises an exception or uses something that the sandbox forbids.
    """
    try:
        return template.render(**values)
    except Exception as error:  # a template may raise any exception
        raise UserError(f"{type(error).__name__}: {error}") from error
