"""What the fields look like to a reader: the text of `--help` and the table of defaults in the README."""

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

A flag wins over CONFIG.json. Names are exact. A bare --flag means true; null (in JSON) means the default.
Names of older PaddleNLP releases are understood and said at the start. Editors complete CONFIG.json by {schema}.
"""


def wants_help(argv: list[str]) -> bool:
    """Whether `argv` asks for help."""
    return any(word in ("-h", "--help") for word in argv)


def help_text(entry: str = "pretrain", width: int | None = None) -> str:
    """Every field by group: type, default, what it does. `width` in columns; None: the terminal's."""
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = [_INTRO.format(title=_TITLES[entry], script=SCRIPTS[entry], schema=SCHEMAS[entry])]
    for title, names in fields_by_group(entry):
        lines.append(f"{title}:")
        for name in names:
            lines.append(f"  --{name} {type_text(kind_of(name))}  (default: {default_text(name, entry)})")
            about = RunConfig.model_fields[name].description or ""
            lines += textwrap.wrap(about, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines)


def defaults_table() -> str:
    """The fields of pretraining as markdown tables, one per group, for the README."""
    return "\n".join(line for title, names in fields_by_group() for line in _table(title, names, "pretrain"))


def finetune_table() -> str:
    """What is different in fine-tuning: other defaults, and the fields that pretraining lacks."""
    lines = ["**Other defaults than in pretraining**", "", "| flag | default | why |", "|---|---|---|"]
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
    lines = [f"**{title}**", "", "| flag | default | what it does |", "|---|---|---|"]
    for name in names:
        about = (RunConfig.model_fields[name].description or "").replace("|", "\\|")
        lines.append(f"| `--{name}` | {default_text(name, entry)} | {about} |")
    return [*lines, ""]


def fields_by_group(entry: str = "pretrain") -> Iterator[tuple[str, list[str]]]:
    """Heading and field names of each group that the script of `entry` has, in the order of declaration."""
    offered = fields_of(entry)
    for group in GROUPS:
        names = [name for name in group.model_fields if name in offered]
        if names:
            yield _title(group), names


def _title(group: type[Group]) -> str:
    return (group.__doc__ or group.__name__).strip().splitlines()[0]


def type_text(kind: Kind) -> str:
    """`INT`, `true|false`, `A|B`, `INT ...`."""
    if kind.choices:
        return "|".join(kind.choices)
    if kind.base is list:
        return f"{_TYPES[kind.item or str]} ..."
    return _TYPES[kind.base]


def default_text(name: str, entry: str = "pretrain") -> str:
    """A default as one would type it; `-` where absence means something of its own."""
    own = entry_defaults(entry, {}).get(name)
    return _typed_text(own.value if own else RunConfig.model_fields[name].get_default(call_default_factory=True))


def _typed_text(default: Any) -> str:
    if default is None or default == "":
        return "-"
    if isinstance(default, list):
        return " ".join(map(str, default))
    return default if isinstance(default, str) else json.dumps(default)
