"""Descriptions of the fields: the text of `--help` and tables of defaults."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from paddle_llm.config.defaults import LEARNING_RATES, entry_defaults
from paddle_llm.config.fields.base import Group
from paddle_llm.config.parsing.values import Kind, kind_of
from paddle_llm.config.run_config import GROUPS, SCRIPTS, RunConfig, fields_of

SCHEMAS = {"pretrain": "configs/schema.json", "finetune": "configs/schema_finetune.json"}
_TYPES: dict[type, str] = {bool: "true|false", int: "INT", float: "NUMBER", str: "TEXT"}
_TITLES = {"pretrain": "Pretrain a language model.", "finetune": "Fine-tune a language model on instructions."}
_INTRO = """\
{title}

Usage:
  python {script} [CONFIG.json] [--key value ...]
  python -m paddle.distributed.launch --nproc_per_node 8 {script} CONFIG.json --max_steps 100   # 8 ranks on a CPU
  python -m paddle.distributed.launch --gpus 0,1,2,3,4,5,6,7 {script} CONFIG.json               # 8 GPUs
"""
_RULES = """\
Flags take precedence over CONFIG.json. Names must be complete. A bare --flag means true; null (in JSON) means the default.
Names of older PaddleNLP releases are accepted and reported at the start. Editors complete CONFIG.json with {schema}.
"""


def wants_help(argv: list[str]) -> bool:
    """Return whether `argv` requests help."""
    return any(word in ("-h", "--help") for word in argv)


def help_text(entry: str = "pretrain", width: int | None = None, usage: bool = True) -> str:
    """Return the text of `--help`: every field by group, with type, default and description.

    Args:
        entry: "pretrain" or "finetune".
        width: Number of columns; None for the width of the terminal.
        usage: Whether to begin with the usage of the script.
    """
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = [_INTRO.format(title=_TITLES[entry], script=SCRIPTS[entry])] if usage else []
    lines.append(_RULES.format(schema=SCHEMAS[entry]))
    for title, names in fields_by_group(entry):
        lines.append(f"{title}:")
        for name in names:
            lines.append(f"  --{name} {type_text(kind_of(name))}  (default: {default_text(name, entry)})")
            description = RunConfig.model_fields[name].description or ""
            lines += textwrap.wrap(description, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines)


def defaults_table() -> str:
    """Return the fields of pretraining as Markdown tables, one per group."""
    return "\n".join(line for title, names in fields_by_group() for line in _table(title, names, "pretrain"))


def finetune_table() -> str:
    """Return the differences of fine-tuning as Markdown tables: other defaults, and the fields that pretraining lacks."""
    lines = ["**Defaults that differ from pretraining**", "", "| flag | default | reason |", "|---|---|---|"]
    for name, default in entry_defaults("finetune", {"do_eval": True}).items():
        if name != "learning_rate":
            lines.append(f"| `--{name}` | {_typed_text(default.value)} | {default.why} |")
    for method, rate in LEARNING_RATES.items():
        lines.append(f"| `--learning_rate`, {method} | {_typed_text(rate.value)} | {rate.why} |")
    lines.append("")
    shared = fields_of("pretrain")
    for title, names in fields_by_group("finetune"):
        own = [name for name in names if name not in shared]
        lines += _table(title, own, "finetune") if own else []
    return "\n".join(lines)


def _table(title: str, names: list[str], entry: str) -> list[str]:
    lines = [f"**{title}**", "", "| flag | default | description |", "|---|---|---|"]
    for name in names:
        description = (RunConfig.model_fields[name].description or "").replace("|", "\\|")
        lines.append(f"| `--{name}` | {default_text(name, entry)} | {description} |")
    return [*lines, ""]


def fields_by_group(entry: str = "pretrain") -> Iterator[tuple[str, list[str]]]:
    """Yield heading and field names of each group of the script of `entry`, in the order of declaration."""
    available = fields_of(entry)
    for group in GROUPS:
        names = [name for name in group.model_fields if name in available]
        if names:
            yield _title(group), names


def _title(group: type[Group]) -> str:
    return (group.__doc__ or group.__name__).strip().splitlines()[0]


def type_text(kind: Kind) -> str:
    """Return the type of a field for `--help`: `INT`, `true|false`, `A|B` or `INT ...`."""
    if kind.choices:
        return "|".join(kind.choices)
    if kind.base is list:
        return f"{_TYPES[kind.item or str]} ..."
    return _TYPES[kind.base]


def default_text(name: str, entry: str = "pretrain") -> str:
    """Return a default as a user would write it; `-` if an absent value has its own meaning."""
    own = entry_defaults(entry, {}).get(name)
    return _typed_text(own.value if own else RunConfig.model_fields[name].get_default(call_default_factory=True))


def _typed_text(default: Any) -> str:
    if default is None or default == "":
        return "-"
    if isinstance(default, list):
        return " ".join(map(str, default))
    return default if isinstance(default, str) else json.dumps(default)
