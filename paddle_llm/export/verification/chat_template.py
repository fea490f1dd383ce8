"""Compares the chat templates of an export and its source, each rendered with its own special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle_llm.config.local_files.chat_templates import DEFAULT, TOOL_USE, find_templates, read_record
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.renderer import Renderer, RowRejected
from paddle_llm.data.chat.template_variables import special_token_variables
from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.export.source.source import Source
from paddle_llm.export.targets.serving_files import chosen_template

_ANSWERED = [{"role": "user", "content": " What is {{ 2 }} + 2?\n"}, {"role": "assistant", "content": "It is 4."}]
_SYSTEM = {"role": "system", "content": "Be kind."}
_MORE = [{"role": "user", "content": "你确定吗？"}, {"role": "assistant", "content": " Yes,\nsure. "}]
_TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
# Messages, whether a generation prompt is added, and other variables.
_CONVERSATIONS: list[tuple[list[dict[str, str]], bool, dict[str, Any]]] = [
    (_ANSWERED[:1], True, {}),
    (_ANSWERED, False, {}),
    ([_SYSTEM, *_ANSWERED, *_MORE], False, {}),
    ([*_ANSWERED, *_MORE[:1]], True, {}),
    (_ANSWERED[:1], True, {"tools": [_TOOL]}),
]
_DATE = "2024-07-26"


def template_differences(source: Source, folder: Path) -> tuple[int, list[str]] | None:
    """Compare the chat template of an export with that of its source.

    Returns:
        The number of conversations that were rendered with both, and what differs; None if neither has a template.
    """
    if source.tokenizer is None:
        return None
    try:
        expected, _ = chosen_template(source)
        found = find_templates(folder)
        read_record(folder)
        if expected is None and found is None:
            return None
        if expected is None or found is None:
            return 0, [f"only the {'export' if expected is None else 'source'} has a chat template"]
        ours = _texts(expected.templates, str(source.tokenizer), "the source")
        theirs = _texts(found.by_name, str(folder), "the export")
    except UserError as error:
        return 0, [str(error)]
    wrong = [number for number, pair in enumerate(zip(ours, theirs, strict=True), 1) if pair[0] != pair[1]]
    return len(ours), [f"conversation {number} is rendered differently" for number in wrong]


def _texts(templates: Mapping[str, str], tokenizer: str, where: str) -> list[str | None]:
    """Render every conversation; None if the template rejects it."""
    values = special_token_variables(open_codec(tokenizer), tokenizer)
    texts: list[str | None] = []
    for messages, add_generation_prompt, variables in _CONVERSATIONS:
        name = TOOL_USE if "tools" in variables and TOOL_USE in templates else DEFAULT
        source = templates.get(name) or next(iter(templates.values()))
        try:
            renderer = Renderer(source, where, values, _DATE)
            texts.append(renderer(messages, add_generation_prompt=add_generation_prompt, **variables).text)
        except RowRejected:
            texts.append(None)
    return texts
