"""Chat templates of a folder, found as transformers 4.55 does, and the record of the template that a model was trained with.

Files of a folder:
    chat_template.jinja               the template named `default`
    additional_chat_templates/*.jinja further templates by name
    tokenizer_config.json             `chat_template`: one template, or a list of {"name", "template"}; read if the files above do not exist
    chat_template.json                a processor's {"chat_template": ...}; read if the files above do not exist
    training_chat_template.json       record of this package: name and digest of the template that the model was trained with
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paddle_llm.core.artifacts import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_RECORD,
    CHAT_TEMPLATES_FOLDER,
    PROCESSOR_CHAT_TEMPLATE,
    TOKENIZER_CONFIG,
)
from paddle_llm.core.downloads import HEAD_BYTES, failed_download
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json

DEFAULT, TOOL_USE = "default", "tool_use"
_NAME = re.compile(r"[\w\-. ]*\w")


@dataclass(frozen=True)
class FoundTemplates:
    """The chat templates of a folder.

    Attributes:
        by_name: Jinja source by name; a single template is named `default`.
        where: File or folder of the templates, for messages.
        ignored: Files of the folder with a template that transformers ignores because of `where`.
    """

    by_name: Mapping[str, str]
    where: str
    ignored: tuple[str, ...] = ()

    def choose(self, with_tools: bool) -> str | None:
        """Return the name that transformers' `get_chat_template` chooses; None without a default."""
        if len(self.by_name) == 1 and DEFAULT in self.by_name:
            return DEFAULT
        if with_tools and TOOL_USE in self.by_name:
            return TOOL_USE
        return DEFAULT if DEFAULT in self.by_name else None


def find_templates(folder: str | Path | None) -> FoundTemplates | None:
    """Find the chat templates of a folder as transformers 4.55 does.

    Returns:
        Templates; None if the folder has none.

    Raises:
        UserError: If a file is not UTF-8, not JSON or not a template.
    """
    if not folder:
        return None
    folder = Path(folder)
    sources: list[tuple[dict[str, str], str]] = []
    files = [(DEFAULT, folder / CHAT_TEMPLATE)] if (folder / CHAT_TEMPLATE).is_file() else []
    files += [(file.stem, file) for file in sorted((folder / CHAT_TEMPLATES_FOLDER).glob("*.jinja"))]
    if files:
        where = str(folder / (CHAT_TEMPLATE if len(files) == 1 and files[0][0] == DEFAULT else ""))
        sources.append(({name: read_text(file) for name, file in files}, where))
    unread: list[str] = []
    for name in (TOKENIZER_CONFIG, PROCESSOR_CHAT_TEMPLATE):
        file = folder / name
        if file.is_file():
            if sources and _is_paddlenlp(file):
                unread.append(str(file))
                continue
            found = _in_json(file)
            if found:
                sources.append((found, str(file)))
    if not sources:
        return None
    (by_name, where), *others = sources
    return FoundTemplates(by_name, where, (*unread, *(other for templates, other in others if templates != by_name)))


def read_text(file: Path) -> str:
    """Return the text of a template file.

    Raises:
        UserError: If it is not UTF-8, or starts with a byte order mark, which transformers would write into every prompt.
    """
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"The chat template {file} is not UTF-8: {error}. Convert it to UTF-8.") from None
    except OSError as error:
        raise UserError(f"The chat template {file} cannot be read: {error.strerror}. Give another file.") from None
    if problem := failed_download(text[:HEAD_BYTES].encode(), pages=False):
        raise UserError(f"The chat template {file} {problem}.")
    if text.startswith("\ufeff"):
        raise UserError(f"The chat template {file} starts with a byte order mark. Save it as UTF-8 without one.")
    return _plain_newlines(text)


def _plain_newlines(text: str) -> str:
    """Return a text with the line ends that Python's text files and Jinja produce."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def keeps_template(folder: str | Path | None) -> bool:
    """Return whether a folder has a chat template or the record of one."""
    return folder is not None and (
        (Path(folder) / CHAT_TEMPLATE_RECORD).is_file() or find_templates(folder) is not None
    )


def copy_templates(source: Path, target: Path) -> None:
    """Copy the template files and the record that a folder has."""
    for name in (CHAT_TEMPLATE, CHAT_TEMPLATE_RECORD):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (source / CHAT_TEMPLATES_FOLDER).is_dir():
        shutil.copytree(source / CHAT_TEMPLATES_FOLDER, target / CHAT_TEMPLATES_FOLDER)


def _is_paddlenlp(file: Path) -> bool:
    """Return whether a file is a chat template in PaddleNLP's format."""
    try:
        values = parse_json(file.read_text(encoding="utf-8-sig"))
    except ValueError:
        return False
    return isinstance(values, dict) and "chat_template" not in values and bool({"conversation", "query"} & set(values))


def _in_json(file: Path) -> dict[str, str]:
    try:
        values = parse_json(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}. Correct the file.") from None
    if not isinstance(values, dict):
        return {}
    if file.name == PROCESSOR_CHAT_TEMPLATE and "chat_template" not in values:
        if _is_paddlenlp(file):
            raise UserError(
                f"{file} is a chat template in PaddleNLP's format, which is not supported: keys {', '.join(sorted(values))}. "
                f"Write it as Jinja to {CHAT_TEMPLATE} and remove it, or choose a built-in template with --chat_template."
            )
        return {}
    return _named(values.get("chat_template"), file)


def _named(value: Any, file: Path) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list) and all(isinstance(one, dict) and {"name", "template"} <= set(one) for one in value):
        value = {one["name"]: one["template"] for one in value}
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise UserError(
            f'The chat_template of {file} is neither text nor a list of {{"name", "template"}}: {type(value).__name__}. '
            "Correct the file."
        )
    odd = [name for name in value if not _NAME.fullmatch(name)]
    if odd:
        raise UserError(f"The name of a chat template in {file} cannot be a file name: {odd[0]!r}. Rename it.")
    return value


# ---- the template of a training --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingTemplate:
    """The template that a model was trained with, saved beside its weights.

    Attributes:
        name: Name of a built-in template, or `jinja`.
        templates: Jinja source by name; a built-in template in its Jinja form. Empty if it has none.
        settings: Further settings that change the written text, such as the date for `strftime_now`.
    """

    name: str
    templates: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the templates as transformers saves them, and the record. Other templates of the folder are removed."""
        if self.templates:
            _remove_templates(folder)
        for name, source in self.templates.items():
            file = folder / CHAT_TEMPLATE if name == DEFAULT else folder / CHAT_TEMPLATES_FOLDER / f"{name}.jinja"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_plain_newlines(source), encoding="utf-8", newline="\n")
        self.write_record(folder)

    def write_record(self, folder: Path) -> None:
        """Write only the record, for templates that the folder already has."""
        record = Record(self.name, digests(self.templates), dict(self.settings))
        (folder / CHAT_TEMPLATE_RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Record:
    """Content of `training_chat_template.json`.

    Attributes:
        name: Name of a built-in template, or `jinja`.
        digests: SHA-256 of each template's text by name.
        settings: As in TrainingTemplate.
    """

    name: str
    digests: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)


def digests(templates: Mapping[str, str]) -> dict[str, str]:
    """Return the SHA-256 of each text by name."""
    return {
        name: hashlib.sha256(_plain_newlines(text).encode("utf-8", "surrogatepass")).hexdigest()
        for name, text in templates.items()
    }


def read_record(folder: str | Path | None) -> Record | None:
    """Read the record of the training template in a folder, and compare it with the templates of the folder.

    Returns:
        Record; None if the folder has none.

    Raises:
        UserError: If the record cannot be read, or a recorded template is missing or has another text.
    """
    file = Path(folder or "") / CHAT_TEMPLATE_RECORD
    if not folder or not file.is_file():
        return None
    try:
        values = parse_json(file.read_text(encoding="utf-8"))
        record = Record(str(values["name"]), dict(values["digests"]), dict(values.get("settings") or {}))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is not a valid record of a chat template. Restore it, or remove it.") from None
    found = find_templates(folder)
    present = digests(found.by_name) if found else {}
    if present != record.digests:
        names = sorted(set(present) ^ set(record.digests)) or sorted(
            name for name, digest in present.items() if digest != record.digests[name]
        )
        raise UserError(
            f"The chat template of {found.where if found else folder} is not the one that the model was trained with "
            f"(recorded in {CHAT_TEMPLATE_RECORD}: {record.name}): {', '.join(names)} differs. Restore it, choose a template "
            f"with --chat_template, or remove {CHAT_TEMPLATE_RECORD} to use the one found."
        )
    return record


def _remove_templates(folder: Path) -> None:
    (folder / CHAT_TEMPLATE).unlink(missing_ok=True)
    (folder / PROCESSOR_CHAT_TEMPLATE).unlink(missing_ok=True)
    shutil.rmtree(folder / CHAT_TEMPLATES_FOLDER, ignore_errors=True)
    config = folder / TOKENIZER_CONFIG
    if config.is_file():
        values = parse_json(config.read_text(encoding="utf-8"))
        if values.pop("chat_template", None) is not None:
            config.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
