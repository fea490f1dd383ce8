"""Sections "model" and "weights" of the report on a folder with a config.json."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.config.local_files.weights import choose_weights, has_weights
from paddle_llm.core.artifacts import GENERATION_CONFIG
from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES, Family
from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.shape import find_family
from paddle_llm.generation.network import start_process
from paddle_llm.inspection.report import Level, Section
from paddle_llm.models.build import plain_configuration
from paddle_llm.models.configuration.configure import translate
from paddle_llm.models.configuration.generation_settings import (
    describe_unapplied,
    end_ids,
    read_generation,
    unreachable_eos_note,
)
from paddle_llm.models.weights.files import WeightFiles, is_finite
from paddle_llm.models.weights.findings import describe_not_finite
from paddle_llm.models.weights.load import locate_weights
from paddle_llm.models.weights.names import IGNORED_ENDS
from paddle_llm.models.weights.weight_shapes import weight_shapes

_NO_ROPE = {"ALiBi": "none (ALiBi)", "learned": "none (learned positions)"}


def inspect_model(folder: Path, *, quick: bool, allow_pickle: bool = False) -> list[Section]:
    """Describe config.json and the weight files of a folder.

    Args:
        folder: Folder to describe.
        quick: Whether to skip the comparison of weights with the network, which imports Paddle.
        allow_pickle: Whether to read torch's pickles.
    """
    model, weights = Section("model"), Section("weights")
    facts: ModelFacts | None = None
    family: Family | None = None
    with model.collect_messages():
        facts = read_model_facts(folder)
        _describe(model, facts)
        family = find_family(facts)
        model.facts["family"] = family.title
        translate(family, facts.raw, str(folder))
    with model.collect_messages():
        _describe_generation(model, folder, facts)
    files: WeightFiles | None = None
    if not has_weights(folder) and not any(folder.glob("*.bin")):
        weights.add(Level.NOTE, "the folder has no weight files: a run can only start from random weights")
        return [model, weights]
    with weights.collect_messages():
        choice = choose_weights(folder, allow_pickle=allow_pickle)
        weights.facts["files read"] = [file.name for file in choice.files]
        files = WeightFiles(folder, allow_pickle=allow_pickle)
        _describe_files(weights, files)
    if files and quick:
        weights.add(Level.NOT_COMPARED, "names, shapes and values of the weights (--quick)")
    elif facts and family and files and not _is_refused(model):
        with weights.collect_messages():
            _compare_with_network(weights, folder, family, facts, files)
    return [model, weights]


def _is_refused(section: Section) -> bool:
    """Return whether a part of a section is refused."""
    return any(finding.level is Level.REFUSED for finding in section.findings)


def _describe(section: Section, facts: ModelFacts) -> None:
    section.facts |= {
        "family": facts.model_type,
        "architectures": list(facts.architectures),
        "layers": facts.num_hidden_layers,
        "hidden size": facts.hidden_size,
        "heads": facts.num_attention_heads,
        "key-value heads": facts.num_key_value_heads,
        "head size": facts.head_dim,
        "feed-forward size": facts.intermediate_size,
        "vocabulary": facts.vocab_size,
        "tied head": facts.tie_word_embeddings,
        "RoPE": _rope(facts),
        "positions": facts.max_position_embeddings,
        "declared dtype": facts.raw.get("torch_dtype") or facts.raw.get("dtype"),
    }
    limit = getattr(facts, "position_limit", facts.max_position_embeddings)
    if limit is None:
        section.facts["positions"] = "any number"
    elif limit != facts.max_position_embeddings:
        section.facts["positions"] = f"{limit} ({facts.max_position_embeddings} before scaling)"


def _rope(facts: ModelFacts) -> str:
    family = FAMILIES.get(facts.model_type)
    if family and family.network.positions in _NO_ROPE:
        return _NO_ROPE[family.network.positions]
    raw = facts.raw
    given: dict[str, Any] = next(
        (raw[name] for name in ("rope_parameters", "rope_scaling") if isinstance(raw.get(name), dict)), {}
    )
    theta = raw.get("rope_theta", given.get("rope_theta", 10000.0))
    kind = given.get("rope_type", given.get("type")) or raw.get("rope_scaling_type") or "default"
    factor = given.get("factor") or raw.get("rope_scaling_factor")
    return f"{kind}, theta {theta:g}" + (f", factor {factor}" if factor else "") if _is_number(theta) else str(given)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _describe_generation(section: Section, folder: Path, facts: ModelFacts | None) -> None:
    settings = read_generation(folder)
    ends = end_ids(settings, facts.raw if facts else {}, folder)
    section.facts["end ids"] = ends
    if facts and (line := unreachable_eos_note(ends, facts.vocab_size)):
        section.add(Level.NOTE, line)
    section.facts[GENERATION_CONFIG] = settings or None
    line = describe_unapplied(settings, (), folder)
    if line:
        section.add(Level.NOTE, line)


def _describe_files(section: Section, files: WeightFiles) -> None:
    weights = [name for name in files.names() if not name.endswith(IGNORED_ENDS)]
    section.facts |= {
        "format": {"pt": "Hugging Face", "np": "PaddleNLP", "pd": "PaddleNLP"}.get(files.format or "", files.format),
        "tensors": len(weights),
        "stored numbers": sum(math.prod(files.shape(name)) for name in weights),
        "stored dtype": dict(Counter(files.dtype(name) for name in weights).most_common()),
        "files not read": list(files.unread),
        "tensors in two files": len(files.copies),
        "tensors outside the index": len(files.unlisted),
    }


def _compare_with_network(
    section: Section, folder: Path, family: Family, facts: ModelFacts, files: WeightFiles
) -> None:
    """Find every weight of the network in the files.

    Raises:
        UserError: If weights are missing, or have other shapes or values that are not finite.
    """
    start_process("cpu")
    config = plain_configuration(folder, family, facts.raw)
    shapes = weight_shapes(config, family)
    section.facts["parameters"] = sum(math.prod(shape) for shape in shapes.values())
    found = locate_weights(files, shapes, family, config)
    sources = sorted({column.source for columns in found.values() for column in columns})
    broken = [name for name in sources if not is_finite(files.view(name))]
    if broken:
        raise UserError(describe_not_finite(folder, broken))
    section.add(
        Level.AGREES,
        f"all {len(found)} weights of the network are in the files, with the right shapes and finite values",
    )
