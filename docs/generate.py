"""Generated pages of docs/reference (flags, commands, supported models) and the table in configs/README.md.

`python -m docs.generate` writes them. A test compares them with the code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from docs.recipes_table import README, with_table
from paddle_llm.cli.main import paddle_llm
from paddle_llm.config.defaults import LEARNING_RATES, entry_defaults
from paddle_llm.config.help import default_text, fields_by_group, type_text
from paddle_llm.config.methods import METHODS
from paddle_llm.config.parsing.values import kind_of
from paddle_llm.config.run_config import RunConfig, fields_of
from paddle_llm.core.json_files import read_json_object
from paddle_llm.families import FAMILIES, Family
from paddle_llm.families.shape import family_of

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
_MARK = "<!-- Written by `python -m docs.generate`. Do not edit. -->"
_HELP_WIDTH = 100


def flags_page() -> str:
    """Return the page of the flags of pretraining and fine-tuning."""
    shared = fields_of("pretrain")
    missing = [f"`--{name}`" for name in shared if name not in fields_of("finetune")]
    lines = [
        "# Flags and keys of a config",
        _MARK,
        "",
        "Every flag of `paddle-llm pretrain`, `paddle-llm finetune`, `run_pretrain.py` and `finetune_generation.py` is also a key of a JSON",
        "config, without the leading dashes. Flags take precedence over the config. The defaults are the same for flags, JSON files and old",
        "command lines.",
        "",
        "- The type `true|false` accepts a flag without a value, which means true. `INT ...` and `TEXT ...` are lists.",
        "- `-` as a default means that an absent value has its own meaning, which the description gives.",
        "- The options that start processes (`--nproc_per_node`, `--gpus`, ...) are not keys of a config: see",
        "  [the commands](cli.md).",
        "- For the syntax of a config, paths and old names, see [config files](configuration_files.md).",
        "",
        "## Pretraining",
        "",
    ]
    for title, names in fields_by_group("pretrain"):
        lines += _flags(title, names, "pretrain")
    lines += [
        "## Fine-tuning",
        "",
        f"Fine-tuning has the flags of pretraining except {', '.join(missing)}, with these differences.",
        "",
        "### Defaults that differ from pretraining",
        "",
    ]
    defaults = entry_defaults("finetune", {"do_eval": True})
    del defaults["learning_rate"]  # it differs by method
    rows = [(f"`--{name}`", default_text(name, "finetune"), default.why) for name, default in defaults.items()]
    rows += [(f"`--learning_rate`, {method}", str(rate.value), rate.why) for method, rate in LEARNING_RATES.items()]
    lines += _table(("flag", "default", "reason"), rows)
    for title, names in fields_by_group("finetune"):
        lines += _flags(title, [name for name in names if name not in shared], "finetune")
    return _joined(lines)


def _flags(title: str, names: list[str], entry: str) -> list[str]:
    if not names:
        return []
    rows = []
    for name in names:
        description = RunConfig.model_fields[name].description or ""
        rows.append((f"`--{name}`", f"`{type_text(kind_of(name))}`", default_text(name, entry), description))
    return [f"### {title}", "", *_table(("flag", "type", "default", "description"), rows)]


def cli_page() -> str:
    """Return the page of the commands: the text of `--help` of each, without the flags of a config."""
    lines = [
        "# Commands",
        _MARK,
        "",
        "`paddle-llm` has one command for each task. Every command has `--help`, writes results to stdout and messages to stderr.",
        "Options that are paths accept `~` and environment variables. For exit codes, see [Exit codes](exit_codes.md).",
        "",
    ]
    for path, command in _commands(paddle_llm, "paddle-llm"):
        lines += [f"## {path}", "", "```text", _help_of(path, command), "```", ""]
        if hasattr(command, "entry"):
            lines += ["All other options are flags of the config: see [the list of flags](flags.md).", ""]
    return _joined(lines)


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from _commands(below, f"{path} {name}")


def _help_of(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path, help_option_names=["-h", "--help"])
    formatter = click.HelpFormatter(width=_HELP_WIDTH)
    command.format_usage(context, formatter)
    command.format_help_text(context, formatter)
    command.format_options(context, formatter)
    return formatter.getvalue().strip()


def models_page() -> str:
    """Return the page of the supported model families."""
    families = list(FAMILIES.values())
    lines = [
        "# Supported models",
        _MARK,
        "",
        "Each model belongs to a family, which is found by `model_type` in config.json. ChatGLM-6B and ChatGLM2/3 share the type `chatglm` and are",
        "distinguished by other fields. Every difference between families is described in `paddle_llm/families`.",
        "",
        "## Families",
        "",
    ]
    shapes = _shapes()
    rows = [
        (
            family.title,
            _code(family.config_json.model_types),
            _code((family.name, *family.aliases)),
            _code([family.model_class.split(":")[1]]),
            family.network.positions,
        )
        for family in families
    ]
    lines += _table(
        ("family", "`model_type`", "`--model_type`", "network of PaddleNLP", "positions"),
        rows,
    )
    lines += [
        "Shapes that come with the package (`--model_name_or_path configs/models/NAME`):",
        "",
        *(f"- {family.title}: {_code(shapes[family.name])}" for family in families),
        "",
        "All families train from random weights and from weights of Hugging Face (safetensors) or PaddleNLP.",
        "",
        "## Parallelism and kernels",
        "",
        "Data parallelism, sharding stages 1, 2 and 3, and tensor parallelism work with every family. The tensor-parallel degree must divide the",
        "number of attention heads. Sharding stage 3 cannot be combined with a pipeline.",
        "",
    ]
    rows = [
        (
            family.title,
            "copied to every rank" if family.capabilities.replicates_key_value_heads else "refused",
            _yes(family.capabilities.sequence_parallel),
            _yes(bool(family.pipeline_class)),
            _code(family.capabilities.recompute_granularities),
            _yes(family.capabilities.flash_attention),
            _yes(family.capabilities.fused_rms_norm),
            _yes(family.capabilities.fused_rope),
        )
        for family in families
    ]
    lines += _table(
        (
            "family",
            "key-value heads that the tensor degree does not divide",
            "sequence parallel",
            "pipeline, virtual stages",
            "`--recompute_granularity`",
            "`--use_flash_attention` (GPU)",
            "`--use_fused_rms_norm`",
            "`--use_fused_rope` (GPU)",
        ),
        rows,
    )
    lines += [
        "## Fine-tuning methods",
        "",
        "All methods work with tensor and sequence parallelism and with sharding stages 1 and 2. A combination that does not exist is refused",
        "before training with its reason.",
        "",
    ]
    rows = [
        (
            method,
            _unless(one.no_pipeline),
            _unless(one.no_stage3),
            _unless(one.no_packing),
            _yes(one.mergeable),
            _except([f.title for f in families if _refuses(f, method)]),
        )
        for method, one in METHODS.items()
    ]
    lines += _table(
        (
            "method",
            "pipeline",
            "sharding stage 3",
            "packed rows (`--zero_padding`)",
            "merged into the base",
            "families",
        ),
        rows,
    )
    without_packed_prefix = [f.title for f in families if not f.capabilities.packed_prefix]
    without_projection = [f.title for f in families if not f.capabilities.prefix_projection]
    lines += [
        f"- Prefix tuning with packed rows is not supported for {', '.join(without_packed_prefix)}.",
        f"- `--prefix_projection` is not supported for {', '.join(without_projection)}, and not with a pipeline or sharding stage 3.",
        "- `--dora` is not supported with sharding stage 3, or with tensor parallelism and a LoRA dropout.",
        "",
        "## Exports",
        "",
        "`paddle-llm export` writes every family for Hugging Face (`--target hf`) and as a static program for paddle.inference",
        "(`--target static`). The other columns name the programs that an export is compared with, and FastDeploy, which cannot run without a GPU.",
        "",
    ]
    rows = [
        (
            family.title,
            _yes(family.engines.fastdeploy),
            _yes(family.engines.transformers)
            if not family.config_json.code_repository
            else f"needs the authors' code ({family.config_json.code_repository})",
            _yes(family.engines.paddleformers),
        )
        for family in families
    ]
    lines += _table(
        ("family", "`--target fastdeploy` (FastDeploy 2.x)", "verified in transformers", "verified in PaddleFormers"),
        rows,
    )
    return _joined(lines)


def _shapes() -> dict[str, list[str]]:
    """Return the names of the model shapes in configs/models by family."""
    found: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for file in sorted((ROOT / "configs" / "models").glob("*/config.json")):
        found[family_of(read_json_object(file)) or ""].append(file.parent.name)
    return found


def _refuses(family: Family, method: str) -> bool:
    return method == "prompt" and not family.capabilities.prompt_tuning


def _except(titles: list[str]) -> str:
    return f"all except {', '.join(titles)}" if titles else "all"


def _unless(reason: str) -> str:
    return f"no: {reason}" if reason else "yes"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words) or "-"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return [
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in row)} |" for row in lines),
        "",
    ]


def _joined(lines: list[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


# File in docs/reference -> function that returns its text.
PAGES: dict[str, Callable[[], str]] = {"flags.md": flags_page, "cli.md": cli_page, "models.md": models_page}


def main(folder: str | None = None) -> None:
    """Write all pages to `folder`, by default docs/reference; then also the table of recipes in configs/README.md."""
    for name, text in PAGES.items():
        Path(folder or REFERENCE, name).write_text(text(), encoding="utf-8")
    if folder is None:
        README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
