"""Jinja templates from files of others, run in Jinja's sandbox with what Hugging Face's chat templates may use
(transformers 4.55, utils/chat_template_utils.py): loop controls, tojson, raise_exception, {% generation %}. Not strftime_now: a
sample must not depend on the day; templates that know it write a fixed date where it is missing."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from paddle_llm.config.errors import UserError

# Around what stands between {% generation %} and {% endgeneration %}; private-use characters, taken out again.
GENERATION_BEGINS, GENERATION_ENDS = "\ue0f0\ue0f1", "\ue0f1\ue0f0"


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: the text that the assistant is to learn."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{GENERATION_BEGINS}{caller()}{GENERATION_ENDS}"


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    # Jinja's own escapes what HTML would misread.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache
def _environment(strict: bool) -> jinja2.Environment:
    extensions = [_Generation, jinja2.ext.loopcontrols]
    kind = jinja2.StrictUndefined if strict else jinja2.Undefined
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=not strict, lstrip_blocks=not strict, extensions=extensions, undefined=kind
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    return made


def compile_template(source: str, where: str, strict: bool = False) -> jinja2.Template:
    """Compile; `strict`: a name that is not there is an error, as for columns of a record.

    Raises:
        UserError: not Jinja.
    """
    try:
        return _environment(strict).from_string(source)
    except jinja2.TemplateError as error:
        line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise UserError(f"{where}: no valid Jinja{line}: {error}") from error


def render(template: jinja2.Template, values: dict[str, Any]) -> str:
    """Fill a template.

    Raises:
        UserError: it raised, or reached for what the sandbox withholds.
    """
    try:
        return template.render(**values)
    except Exception as error:  # a template of others may raise anything
        raise UserError(f"{type(error).__name__}: {error}") from error
