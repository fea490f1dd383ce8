"""Read a config file, which is plain JSON in UTF-8. A mistake is reported with its line, column and correction.

JSON with comments, trailing commas or repeated keys is refused: other programs that read the same file would see another
config.
"""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddle_llm.core.json_files import parse_json

_REMEDY = "Give a JSON file as the first argument, or only --flags"
_PLAIN = "A config is plain JSON"
_MAX_BYTES = 1 << 24
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
# Lines of the outermost level in other formats.
_YAML = re.compile(r"""^["']?([A-Za-z_$][\w.-]*)["']?\s*:(?:\s+(.*)|\s*)$""")
_TOML = re.compile(r"""^["']?([A-Za-z_][\w.-]*)["']?\s*=\s*(.*)$""")
# Numbers that JSON does not allow: hexadecimal, octal, binary; a leading zero, plus or point; grouped digits; a final point.
_NUMBER = re.compile(r"[-+]?(0[xXoObB][0-9a-fA-F_]+|0\d+|\.\d+|\d+_[\d_]+|\d+\.(?!\d))[\d.eE_+-]*|\+\d[\d.eE_+-]*")
_OTHER = {".yaml": "YAML", ".yml": "YAML", ".toml": "TOML", ".ini": "INI", ".cfg": "INI"}
_PYTHON_LITERALS = {"True": "true", "False": "false", "None": "null"}
_NESTED = "..."


@dataclass
class ConfigFile:
    """Content of a config file.

    Attributes:
        values: Value by key; of a YAML or TOML file the keys that could be recognised.
        problems: One message per mistake.
        is_read: Whether `values` is complete. If not, keys may seem to be missing.
    """

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    is_read: bool = False


def read_config_file(name: str, path: Path) -> ConfigFile:
    """Read a config file.

    Args:
        name: Path as the user wrote it, for messages.
        path: Expanded path.
    """
    text, problem = _text_of(name, path)
    if problem:
        return ConfigFile(problems=[problem])
    repeated: list[str] = []
    constants: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                repeated.append(key)
            seen[key] = value
        return seen

    try:
        content = parse_json(text, object_pairs_hook=collect, parse_constant=constants.append)
    except json.JSONDecodeError as error:
        return _not_json(name, path, text, error)
    except RecursionError:
        return ConfigFile(problems=[f"{name}: values are nested too deeply. {_PLAIN}: keys and values."])
    except ValueError as error:  # a whole number of thousands of digits
        return ConfigFile(problems=[f"{name} is not valid JSON: {error}."])
    if not isinstance(content, dict):
        return ConfigFile(
            problems=[f"{name} contains a {_kind_of(content)}. Write one JSON object of keys and values."]
        )
    found = ConfigFile(content, is_read=True)
    for key in dict.fromkeys(repeated):
        found.problems.append(f'{name}: duplicate key "{key}". Keep one of them.')
    for constant in dict.fromkeys(constants):
        found.problems.append(f"{name}: {constant} is not a JSON value. Write a number, or null for the default.")
    return found


def _text_of(name: str, path: Path) -> tuple[str, str]:
    """Return the text, or else a message."""
    try:
        with open(path, "rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return "", f"{name} does not exist. {_REMEDY}."
    except IsADirectoryError:
        return "", f"{name} is a folder. {_REMEDY}."
    except (OSError, ValueError) as error:
        return "", f"{name} cannot be read: {getattr(error, 'strerror', None) or error}. {_REMEDY}."
    if len(raw) > _MAX_BYTES:
        return "", f"{name} is larger than 16 MiB, too large for a config. {_REMEDY}."
    encoding = next(
        (one for mark, one in _BYTE_ORDER_MARKS if raw.startswith(mark)), "UTF-16" if _is_utf16(raw[:200]) else None
    )
    if encoding:
        return "", (
            f"{name} is {encoding} text, but a config must be UTF-8. Convert it: iconv -f {encoding} -t UTF-8 {name} > new.json"
        )
    if b"\0" in raw:
        return "", f"{name} is not text. {_REMEDY}."
    try:
        return raw.decode("utf-8-sig"), ""
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return "", (
            f"{name} is not UTF-8 text: line {line}, byte 0x{raw[error.start]:02x}. "
            f"Convert it, for example: iconv -f GBK -t UTF-8 {name} > new.json"
        )


def _is_utf16(head: bytes) -> bool:
    """Return whether the text is ASCII in UTF-16: exactly every second byte is zero."""
    even, odd = head[::2], head[1::2]
    return any(
        b"\0" not in one and len(other) > 1 and not other.strip(b"\0") for one, other in ((even, odd), (odd, even))
    )


def _not_json(name: str, path: Path, text: str, error: json.JSONDecodeError) -> ConfigFile:
    """Return the mistake in text that is not JSON, and the keys of YAML and TOML, so that their counterparts can be named."""
    kind = _OTHER.get(path.suffix.lower())
    body = re.sub(r"(?m)^\s*(//|#).*$", "", text).lstrip()
    is_object = body.startswith(("{", "[{")) or text.lstrip().startswith("/*")
    values = {} if is_object else _visible_keys(text, _TOML if kind in ("TOML", "INI") else _YAML)
    if kind is None and values:
        kind = "YAML"
    elif kind is None and not is_object:
        values = _visible_keys(text, _TOML)
        kind = "TOML" if values else None
    if kind is not None and (values or path.suffix.lower() in _OTHER):
        return ConfigFile(
            values,
            [f'{name} is {kind}, but a config must be JSON. Write its keys as one JSON object: {{"key": value, ...}}.'],
        )
    where = f"{name} is not valid JSON: line {error.lineno}, column {error.colno}: "
    return ConfigFile(problems=[where + _cause(text, error)])


def _visible_keys(text: str, pattern: re.Pattern[str]) -> dict[str, Any]:
    """Return the keys of the outermost level with their values as text; `...` for a nested value."""
    found: dict[str, Any] = {}
    lines = [line.rstrip() for line in text.splitlines()]
    for number, line in enumerate(lines):
        match = pattern.match(line)
        if match is None:
            continue
        value = re.sub(r"\s+#.*$", "", match[2] or "").strip().strip("\"'")
        following = next((later for later in lines[number + 1 :] if later and not later.lstrip().startswith("#")), "")
        nested = not value and (following.startswith((" ", "\t", "- ")))
        found[match[1]] = (
            _NESTED if nested or value in ("|", ">") else {"true": True, "false": False}.get(value.lower(), value)
        )
    return found


def _cause(text: str, error: json.JSONDecodeError) -> str:
    """Return what is wrong at the position of the error, and how to correct it."""
    if not text.strip():
        return f'the file is empty. {_PLAIN}: {{"key": value, ...}}.'
    return _wrong_token(text, error.pos) or _wrong_syntax(text[error.pos :], error.msg)


def _wrong_token(text: str, position: int) -> str:
    """Return the message for a token that JSON does not have; else ""."""
    rest, before = text[position:], text[:position].rstrip()
    if re.match(r"\s*(//|/\*|#)", rest):
        return f"a comment. {_PLAIN}, without comments. Remove the comment."
    if rest[:1] in ("}", "]") and before.endswith(","):
        return f"a comma before {rest[:1]}. {_PLAIN}, without trailing commas. Remove the comma."
    if rest[:1] == "'":
        return "a single quote. Write double quotes."
    if rest[:1] in ("\u201c", "\u201d", "\uff02"):
        return f"a typographic quote {rest[:1]}. Write a plain double quote."
    if literal := re.match(r"(True|False|None)\b", rest):
        return f"{literal[1]} is Python's notation. Write {_PYTHON_LITERALS[literal[1]]}."
    if number := _NUMBER.match(text, _start_of_word(text, position)):
        return f"{number[0]} is not a JSON number. Write it in decimal, such as 42, 0.1 or 1e-4."
    return ""


def _wrong_syntax(rest: str, message: str) -> str:
    """Return the message for a mistake that Python's parser describes.

    Args:
        rest: Text from the position of the error.
        message: Message of the parser.
    """
    if message.startswith("Unterminated string"):
        return "a text without a closing double quote. Add the quote."
    if not rest.strip() and message.startswith("Expecting"):
        return "the file ends before the object is closed. Add }."
    if message.startswith("Invalid control character"):
        return "a tab or line break inside a text. Write \\t or \\n, or close the text with a double quote."
    word = re.match(r"[^\W\d]\w*", rest)
    if word and message.startswith("Expecting value"):
        return f"{word[0][:40]} is not a JSON value. Write text in double quotes; true, false and null without."
    if message.startswith("Expecting property name") and re.match(r"[A-Za-z_]", rest):
        return "a key without quotes. Write it in double quotes."
    if message.startswith("Extra data"):
        return "text after the end of the object. Keep only one object."
    if message.startswith("Invalid \\escape"):
        return "a single backslash. Write it twice, or use / in paths."
    return f"{message}. Correct it there, or on the line before."


def _start_of_word(text: str, position: int) -> int:
    """Return the position where the word or number around a character begins."""
    while position > 0 and re.match(r"[\w.+-]", text[position - 1]):
        position -= 1
    return position


def _kind_of(value: Any) -> str:
    """Return the JSON type of a value, for messages."""
    return {list: "list", str: "text", type(None): "null", bool: "boolean"}.get(type(value), "number")
