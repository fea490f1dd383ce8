r"""Reads a file of prompt templates that turn raw records (any columns) into inputs and targets, as in P3 and xP3.

The file is JSON or YAML: a list of templates, or `{"templates": [...]}`. Promptsource's files (`!Template`,
`jinja: "input ||| target"`, `answer_choices: "no ||| yes"`) are supported as well. A template:

    name: is_it_positive
    inputs: "Review: {{ text }}\nIs it positive?"
    targets: "{{ answer_choices[label] }}"
    answer_choices: "no ||| yes"      # optional
    task: sentiment                   # optional: only for records with this `task`; otherwise it names the task
    language: en                      # optional

A record gives one sample per template that applies to it. As in promptsource, a template with an empty target does not
apply (Bach et al. 2022, "PromptSource", section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jinja2
import yaml

from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json
from paddle_llm.data.instructions.conversation import ASSISTANT, USER, BadRow, Conversation, Turn
from paddle_llm.data.instructions.record_templates import compile_template, render
from paddle_llm.data.json_types import describe_type

_SEPARATOR = "|||"  # promptsource's separator of input and target, and of answer choices
_END_OF_INPUTS = "\x1f"


@dataclass(frozen=True)
class PromptTemplate:
    """A template of inputs and targets.

    Attributes:
        name: Name of the template.
        inputs_and_targets: Compiled inputs and targets as one template, so that a variable set in the inputs is defined in the targets.
        choices: Compiled answer choices; None if there are none.
        task: Task of the samples; records that name another task are skipped.
        language: Language of the samples.
    """

    name: str
    inputs_and_targets: jinja2.Template
    choices: jinja2.Template | None
    task: str
    language: str

    def apply(self, row: dict[str, Any]) -> tuple[str, str] | None:
        """Return (inputs, targets) of a record; None if the template does not apply.

        Raises:
            BadRow: If a column is missing or has an unsuitable value.
        """
        if self.task and row.get("task", self.task) != self.task:
            return None
        columns = dict(row)
        if self.choices is not None:
            columns["answer_choices"] = [c.strip() for c in self._render(self.choices, columns).split(_SEPARATOR)]
        inputs, _, targets = self._render(self.inputs_and_targets, columns).partition(_END_OF_INPUTS)
        return (inputs.strip(), targets.strip()) if targets.strip() else None

    def _render(self, template: jinja2.Template, columns: dict[str, Any]) -> str:
        try:
            return render(template, columns)
        except UserError as error:
            raise BadRow(f"template {self.name!r} cannot be filled: {error}") from error


class PromptTemplates:
    """The templates of a file.

    Attributes:
        path: Path of the file.
        templates: The templates in order.
        applied: Number of samples by name of the template.

    Raises:
        UserError: If the file is missing, is not JSON or YAML, or contains an invalid template.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        entries = _load(path)
        self.templates = [_template(entry, path, number) for number, entry in enumerate(entries, 1)]
        self.applied = dict.fromkeys((t.name for t in self.templates), 0)

    def conversations(self, row: object, where: str) -> Iterator[Conversation]:
        """Yield one conversation per template that applies to a record.

        Raises:
            BadRow: If no template applies.
        """
        if not isinstance(row, dict):
            raise BadRow(f"{describe_type(row)}, not an object")
        samples = [(template, found) for template in self.templates if (found := template.apply(row))]
        if not samples:
            raise BadRow("no template applies")
        for template, (inputs, targets) in samples:
            self.applied[template.name] += 1
            language = template.language or str(row.get("language") or row.get("lang") or "")
            task = template.task or str(row.get("task") or template.name)
            turns = (Turn(USER, inputs), Turn(ASSISTANT, targets))
            yield Conversation(turns, task, language, f"{where} with {template.name!r}")


def _load(path: str) -> list[dict[str, Any]]:
    class Loader(yaml.SafeLoader):
        """Safe loader that reads promptsource's two tags as plain mappings."""

    for tag in ("!Template", "!TemplateMetadata"):
        Loader.add_constructor(tag, lambda loader, node: loader.construct_mapping(node, deep=True))
    try:
        with open(path, encoding="utf-8") as stream:
            # YAML includes JSON, but the messages of the JSON parser are better.
            content = parse_json(stream.read()) if path.endswith(".json") else yaml.load(stream, Loader)
    except OSError as error:
        raise UserError(f"--prompt_templates {path}: cannot be read: {error.strerror}. Check the path.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"--prompt_templates {path}: neither JSON nor YAML: {error}. Correct the file.") from error
    found = content.get("templates") if isinstance(content, dict) else content
    found = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(found, list) or not found:
        raise UserError(
            f"--prompt_templates {path}: no list of templates. Write a list of objects with name, inputs and targets."
        )
    return found


def _template(entry: object, path: str, number: int) -> PromptTemplate:
    where = f"--prompt_templates {path}, template {number}"
    if not isinstance(entry, dict):
        raise UserError(f"{where}: not an object. Write an object with name, inputs and targets.")
    if "jinja" in entry:
        inputs, separator, targets = str(entry["jinja"]).partition(_SEPARATOR)
        if not separator:
            raise UserError(f"{where}: `jinja` has no {_SEPARATOR}. Put it between input and target.")
    elif isinstance(entry.get("inputs"), str) and isinstance(entry.get("targets"), str):
        inputs, targets = entry["inputs"], entry["targets"]
    else:
        raise UserError(
            f"{where}: no inputs and targets; its keys are {', '.join(map(str, entry)) or 'none'}. Add both as text."
        )
    name = str(entry.get("name") or f"template {number}")
    choices = entry.get("answer_choices")
    return PromptTemplate(
        name,
        compile_template(inputs + _END_OF_INPUTS + targets, f"{where} ({name})"),
        compile_template(str(choices), f"{where} ({name})") if choices else None,
        str(entry.get("task") or ""),
        str(entry.get("language") or ""),
    )
