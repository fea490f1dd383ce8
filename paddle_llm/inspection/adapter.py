"""The section "adapter" of a folder with an adapter_config.json."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.inspection.report import Level, Section
from paddle_llm.peft.base import base_named_in, find_base, read_described, why_not_found
from paddle_llm.peft.hugging_face.convert import open_over_base
from paddle_llm.peft.hugging_face.format import is_peft
from paddle_llm.peft.method import Method
from paddle_llm.peft.save import read_method


def inspect_adapter(folder: Path) -> tuple[Section, Path | None]:
    """Describe an adapter.

    Returns:
        The section, and the folder of the base if it is on this machine.
    """
    section, base = Section("adapter"), None
    with section.reading():
        described = read_described(folder)
        named = base_named_in(described)
        base = find_base(named, folder) if isinstance(named, str) else None
        section.facts |= {"written by": "PEFT" if is_peft(described) else "paddle_llm", "base": str(base or named)}
        if is_peft(described):
            section.facts["kind"] = described.get("peft_type")
        method = read_method(folder)
        if base is not None and is_peft(described):
            open_over_base(folder, str(base))
            section.facts["fits its base"] = "yes, by names and shapes"
        _describe(section, method)
        if named and base is None:
            section.add(Level.NOTE, f"{why_not_found(named, folder)}; name the base where the adapter is used")
    return section, base


def _describe(section: Section, method: Method) -> None:
    section.facts["method"] = method.name
    if method.name in ("lora", "adalora"):
        section.facts |= {
            "rank": method.rank,
            "alpha": 2 * method.rank if method.alpha is None else method.alpha,
            "rsLoRA": method.rslora,
            "targets": list(method.targets) or ["all-linear"],
            "trained whole": list(method.modules_to_save),
        }
        for label, name in (("DoRA", "dora"), ("other ranks", "ranks"), ("other alphas", "alphas")):
            value = getattr(method, name, None)
            if value:
                section.facts[label] = dict(value) if isinstance(value, tuple) else value
    section.facts["can be merged"] = method.mergeable
