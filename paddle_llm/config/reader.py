"""Read `[CONFIG.json] [--key value ...]` into a checked RunConfig, or report every mistake at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from paddle_llm.config.defaults import Default, derive, entry_defaults, fitting_length
from paddle_llm.config.device import find_device, has_gpu, paddle_has_gpu, why_no_gpu
from paddle_llm.config.layout import Layout, layout_of
from paddle_llm.config.legacy.other_trainers import VALUES, counterpart, identify_trainer
from paddle_llm.config.legacy.paddlenlp import FINETUNE_NAMES
from paddle_llm.config.legacy.translate import KNOWN_NAMES, translate
from paddle_llm.config.local_files.model_folder import find_model_folder, is_folder_name, read_model_facts
from paddle_llm.config.local_files.weights import has_weights
from paddle_llm.config.parsing.arguments import BARE, RawValue, as_text, read_arguments
from paddle_llm.config.parsing.values import PATH_FIELDS, BadPath, BadValue, is_null, kind_of, parse
from paddle_llm.config.rules import RULES
from paddle_llm.config.rules.engine import Problem, Rule, Run, Unknown, check, masked
from paddle_llm.config.run_config import FIELD_NAMES, FINETUNE_ONLY, PRETRAIN_ONLY, SCRIPTS, Entry, RunConfig, fields_of
from paddle_llm.core.errors import ConfigError, UserError
from paddle_llm.families.facts import ModelFacts

# Names in other trainers -> fields. difflib would not find them.
_HINTS = {
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "dp_degree": "data_parallel_degree",
    "mp_degree": "tensor_parallel_degree",
    "tp_degree": "tensor_parallel_degree",
    "pp_degree": "pipeline_parallel_degree",
    "vpp_degree": "virtual_pp_degree",
    "sharding_stage": "sharding",
    "use_recompute": "recompute",
    "seq_length": "max_seq_length",
    "train_iters": "max_steps",
    "lora_r": "lora_rank",
    "cutoff_len": "max_length",
    "dataset": "dataset_name_or_path",
    "train_file": "dataset_name_or_path",
    "template": "chat_template",
    "packing": "zero_padding",
    "max_new_tokens": "generation_max_new_tokens",
    "virtual_tokens": "num_prefix_tokens",
}


@dataclass(frozen=True)
class Resolved:
    """A checked run.

    Attributes:
        config: Complete config: every field has the value that the run uses.
        layout: Layout of the ranks.
        facts: Shape of the model; None for a built-in name that has not been downloaded.
        origins: Origin by field: "default", "flag", "file PATH", "translated from --x", "derived: reason" or "not supported on
            the CPU".
        notices: Lines to print once at the start.
        requested: Value that the user gave, by field, for fields that the device or the layout changed.
        entry: "pretrain" or "finetune".
    """

    config: RunConfig
    layout: Layout
    facts: ModelFacts | None
    origins: dict[str, str]
    notices: list[str]
    requested: dict[str, Any] = field(default_factory=dict)
    entry: Entry = "pretrain"


def resolve(
    argv: list[str],
    *,
    world_size: int,
    entry: str = "pretrain",
    device: str | None = None,
    further_rules: Sequence[Rule] = (),
) -> Resolved:
    """Read, translate, convert and check a command line.

    Args:
        argv: `[CONFIG.json] [--key value ...]`, without the program's name. Flags take precedence over the file.
        world_size: Number of ranks of the job.
        entry: "pretrain" or "finetune".
        device: "gpu" or "cpu" to check for another machine; None for this machine, which must have the requested device.
        further_rules: Rules of the caller; their problems are reported with the others.

    Raises:
        ConfigError: If the command line has mistakes; the error lists all of them.
    """
    if entry not in get_args(Entry):
        raise ValueError(f"entry must be one of {get_args(Entry)}, not {entry!r}")
    script: Entry = "finetune" if entry == "finetune" else "pretrain"
    problems, notices = _Problems(), list[str]()
    given = _read(argv, script, problems, notices)
    config, invalid, defaults = _convert_values(given, script, problems)
    notices += _expanded_paths(config, given, invalid)
    if problems.stop_early:
        raise ConfigError(problems.lines + problems.notices_of_a_stop)
    is_local = device is None
    device = _device(masked(config, invalid), device, problems.lines, notices)
    folder, facts = _facts(masked(config, invalid), problems.lines, notices)
    if script == "finetune":
        defaults |= fitting_length(config, given, facts)
        config = config.model_copy(update={name: default.value for name, default in defaults.items()})
    masked_config = masked(config, invalid)
    layout = _layout(masked_config, world_size, script, problems.lines, notices)
    run = Run(masked_config, frozenset(given), world_size, device, script, layout, facts, folder, is_local)
    findings = check(run, [*RULES, *further_rules])
    problems.lines += [finding.text for finding in findings if isinstance(finding, Problem)]
    notices += [finding.text for finding in findings if not isinstance(finding, Problem)]
    if problems.lines or layout is None:
        raise ConfigError(problems.lines)

    origins = {name: "default" for name in fields_of(script)} | {
        setting.name: _origin(setting) for setting in given.values()
    }
    origins |= {name: f"default: {default.why}" for name, default in defaults.items()}
    updates, derived_origins, derived_notices = derive(replace(run, config=config))
    requested = {name: getattr(config, name) for name in updates if name in given}
    config = config.model_copy(update=updates)
    return Resolved(config, layout, facts, origins | derived_origins, notices + derived_notices, requested, script)


def resolve_for_cluster(
    argv: list[str], *, world_size: int, entry: str, further_rules: Sequence[Rule] = ()
) -> Resolved:
    """Read and check a command line as a cluster would: on GPUs, or on CPUs if the config asks for them.

    Args:
        argv: `[CONFIG.json] [--key value ...]`, without the program's name.
        world_size: Number of ranks of the job.
        entry: "pretrain" or "finetune".
        further_rules: Rules of the caller; their problems are reported with the others.

    Raises:
        ConfigError: If the command line has mistakes; the error lists all of them.
    """
    options: dict[str, Any] = {"world_size": world_size, "entry": entry, "further_rules": further_rules}
    resolved = resolve(argv, device="gpu", **options)
    if resolved.requested.get("device") == "cpu":
        resolved = resolve(argv, device="cpu", **options)
    return resolved


@dataclass
class _Problems:
    """Mistakes found so far.

    Attributes:
        lines: One message per mistake.
        stop_early: Whether to skip the rules, because the config file could not be read or is written for another trainer. The
            rules would report consequences of that mistake.
        notices_of_a_stop: Notices that are part of the error in that case.
    """

    lines: list[str] = field(default_factory=list)
    stop_early: bool = False
    notices_of_a_stop: list[str] = field(default_factory=list)


def _read(argv: list[str], script: Entry, problems: _Problems, notices: list[str]) -> dict[str, RawValue]:
    """Return the raw values by field, with old names translated."""
    fields = frozenset(fields_of(script))
    arguments = read_arguments(argv, KNOWN_NAMES.union(FIELD_NAMES))
    translated = translate(arguments.given, script, fields)
    problems.lines += arguments.problems + translated.problems
    notices += arguments.notices + translated.notices
    problems.stop_early = arguments.file_is_incomplete

    other_trainer = identify_trainer(
        {setting.name for setting in arguments.given if counterpart(setting.name, setting.raw) != ""}
    )
    if other_trainer is not None:
        trainer, keys = other_trainer
        problems.lines.append(
            f"The config is written for {trainer}: it has the keys {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}, which "
            "are not translated. Replace each key as listed below."
        )
        problems.stop_early = True
        problems.notices_of_a_stop = translated.notices
    return _merge(translated.given, fields, problems.lines)


def entry_of(argv: list[str]) -> Entry:
    """Return the script that a command line is for, judged by the names that only one script has."""
    given = {setting.name for setting in read_arguments(argv, KNOWN_NAMES.union(FIELD_NAMES)).given}
    is_finetune = given & (FINETUNE_ONLY | FINETUNE_NAMES.keys()) and not given & PRETRAIN_ONLY.keys()
    return "finetune" if is_finetune else "pretrain"


def resolved_as_json(resolved: Resolved) -> dict[str, Any]:
    """Return the content of config.resolved.json: value and origin of every field, and `asked` where the request differs."""
    arguments = {}
    for name in resolved.origins:
        row = {"value": getattr(resolved.config, name), "origin": resolved.origins[name]}
        if name in resolved.requested:
            row["asked"] = resolved.requested[name]
        arguments[name] = row
    return {"layout": str(resolved.layout), "world_size": resolved.layout.world_size, "arguments": arguments}


def _merge(given: list[RawValue], fields: frozenset[str], problems: list[str]) -> dict[str, RawValue]:
    """Return one value per field. Flags take precedence over the file; two names of one field in one source must agree."""
    merged: dict[str, RawValue] = {}
    for setting in given:
        if setting.name not in fields:
            use = counterpart(setting.name, True if setting.raw is BARE else setting.raw)
            if use is None or _HINTS.get(setting.name) in fields:
                problems.append(_unknown(setting, fields))
            elif use and (script := _other_script(use, fields)):
                problems.append(f"{setting.display_name()} belongs to {script}. Remove it here. For {script}: {use}.")
            elif use:
                problems.append(
                    f"{setting.display_name()} = {_shortened(setting.raw)} is not a key of this program. {use}."
                )
            continue
        before = merged.get(setting.name)
        if before is not None and before.origin == setting.origin and before.raw != setting.raw:
            names = f"{before.display_name()} and {setting.display_name()}"
            problems.append(f"{names} set the same field to different values. Drop one of them.")
        merged[setting.name] = setting
    return merged


def _other_script(use: str, fields: frozenset[str]) -> str | None:
    """Return the name of the other script if all keys that a counterpart names are keys of that script only."""
    named = [name for name in re.findall(r"--([a-z_0-9]+)", use) if name in FIELD_NAMES]
    if not named or fields.intersection(named):
        return None
    return SCRIPTS["finetune" if named[0] in FINETUNE_ONLY else "pretrain"]


def _unknown(setting: RawValue, fields: frozenset[str]) -> str:
    name = setting.name.replace("-", "_")
    candidates = difflib.get_close_matches(name, sorted(fields), 1, 0.7)
    candidates += [field for field in FIELD_NAMES if field in fields and len(name) > 3 and field.startswith(name)]
    candidates += difflib.get_close_matches(name, KNOWN_NAMES, 1, 0.8)
    hint = _HINTS.get(name)
    close = (hint if hint in fields else None) or (name if name in fields else next(iter(candidates), None))
    remedy = f"Did you mean {'--' if setting.is_flag else ''}{close}?" if close else "--help lists all names."
    return f"{setting.display_name()} is unknown. {remedy}"


def _convert_values(
    given: dict[str, RawValue], entry: str, problems: _Problems
) -> tuple[RunConfig, frozenset[str], dict[str, Default]]:
    """Convert the raw values.

    Returns:
        Config; names of the fields with invalid values, which have defaults instead; entry defaults.
    """
    values: dict[str, Any] = {}
    invalid: set[str] = set()
    for name, setting in given.items():
        if setting.raw is BARE and kind_of(name).base is not bool:
            problems.lines.append(f"{setting.display_name()} has no value. Give {kind_of(name)}.")
            invalid.add(name)
        elif not is_null(setting.raw):
            try:
                values[name] = parse(name, True if setting.raw is BARE else setting.raw)
            except BadPath as error:
                problems.lines.append(f"{setting.display_name()} = {as_text(setting.raw)}: {error}.")
                invalid.add(name)
            except BadValue as error:
                wrong = f"{setting.display_name()} = {as_text(setting.raw)}"
                problems.lines.append(f"{wrong}: expected {error}.{_suggestion(name, setting.raw)}")
                invalid.add(name)
    try:
        RunConfig(**values)
    except ValidationError as error:
        for detail in error.errors():
            name = str(detail["loc"][0])
            message = detail["msg"].replace("Input should be", "must be")
            problems.lines.append(f"{given[name].display_name()} = {as_text(given[name].raw)}: {message}.")
            invalid.add(name)
    written = {name: value for name, value in values.items() if name not in invalid}
    defaults = entry_defaults(entry, written)
    config = RunConfig(**{name: default.value for name, default in defaults.items()} | written)
    return config, frozenset(invalid), defaults


def _expanded_paths(config: RunConfig, given: dict[str, RawValue], invalid: frozenset[str]) -> list[str]:
    """Return one line for each path in which ~ or a variable was replaced."""
    written = {
        name: as_text(setting.raw) for name, setting in given.items() if name in PATH_FIELDS and name not in invalid
    }
    return [
        f"{given[name].display_name()} = {text} is read as {getattr(config, name)}."
        for name, text in written.items()
        if ("~" in text or "$" in text) and text != getattr(config, name) and not is_null(given[name].raw)
    ]


def _shortened(raw: Any) -> str:
    text = as_text(raw)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _suggestion(name: str, raw: Any) -> str:
    """Return a hint at a value that the user may have meant."""
    values = VALUES.get(name, {})
    foreign = values.get(str(raw)) or values.get(str(raw).lower())
    if foreign:
        return f" Use {foreign}."
    close = difflib.get_close_matches(str(raw), kind_of(name).choices, 1)
    return f" Did you mean {close[0]}?" if close else ""


def _origin(setting: RawValue) -> str:
    if not setting.old:
        return setting.origin
    return f"translated from --{setting.old}" if setting.is_flag else f"translated from {setting.display_name()}"


def _device(config: RunConfig, forced: str | None, problems: list[str], notices: list[str]) -> str:
    """Return the device of the run: `forced`, else the requested one, else the best available one."""
    if forced is not None:
        return forced
    try:
        requested = config.device
    except Unknown:
        return find_device()
    if requested is None:
        found = find_device()
        notices.append(f"device: {found}" + (f" ({why_no_gpu()})" if found == "cpu" else ""))
        return found
    if requested == "gpu" and not (has_gpu() and paddle_has_gpu()):
        problems.append(f"device = gpu, but {why_no_gpu()}. Use --device cpu, or drop --device.")
    return requested


def _facts(config: RunConfig, problems: list[str], notices: list[str]) -> tuple[Path | None, ModelFacts | None]:
    """Return the folder that is used for a built-in name (None if the name itself is used), and the shape of the model."""
    try:
        name, layers, loads = config.model_name_or_path, config.num_hidden_layers, config.continue_training
    except Unknown:
        return None, None
    if not name:
        return None, None
    try:
        folder = find_model_folder(name)
        facts = read_model_facts(folder) if folder is not None else None
    except UserError as error:
        problems.append(str(error))
        return None, None
    if facts is not None and layers is not None:
        facts = replace(facts, num_hidden_layers=layers)
    if is_folder_name(name):
        return (None if Path(name).expanduser().is_dir() else folder), facts
    if folder is not None and (has_weights(folder) or not loads):
        notices.append(f"{name} is not a folder on this machine: using {folder}.")
        return folder, facts
    missing = "Its weights must be downloaded" if facts else "Its shape cannot be checked before it is downloaded"
    notices.append(
        f"{name} is not a folder on this machine: PaddleNLP will look it up on the network. {missing}. "
        f"Without a network, give a local folder: --model_name_or_path /path/to/{name.split('/')[-1]}"
    )
    return None, facts


def _layout(config: RunConfig, world_size: int, entry: str, problems: list[str], notices: list[str]) -> Layout | None:
    try:
        degrees = layout_of(config, world_size, entry)
    except Unknown:
        return None
    problems += degrees.problems
    notices += degrees.notices
    return degrees.layout
