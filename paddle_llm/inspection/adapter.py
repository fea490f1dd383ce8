"""Section "adapter" of the report on a folder with an adapter_config.json."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.checkpoint.locate import locate_base
from paddle_llm.inspection.report import Level, Section
from paddle_llm.peft.adapter_files import read_adapter_config, read_method
from paddle_llm.peft.hugging_face.convert import open_with_base
from paddle_llm.peft.hugging_face.format import is_peft
from paddle_llm.peft.method import Method


def inspect_adapter(folder: Path) -> tuple[Section, Path | None]:
    """Describe an adapter.

    Args:
        folder: Adapter folder.

    Returns:
        Section; folder of the base model, None if it is not on this machine.
    """
    section, base = Section("adapter"), None
    with section.collect_messages():
        adapter_config = read_adapter_config(folder)
        located = locate_base(folder)
        base = located.folder
        section.facts |= {
            "written by": "PEFT" if is_peft(adapter_config) else "paddle_llm",
            "base": str(base or located.name or None),
        }
        if is_peft(adapter_config):
            section.facts["kind"] = adapter_config.get("peft_type")
        method = read_method(folder)
        if base is not None and is_peft(adapter_config):
            open_with_base(folder, base)
            section.facts["fits its base"] = "yes, by names and shapes"
        _describe(section, method)
        if located.name and base is None:
            problem = located.problem[0].upper() + located.problem[1:]
            section.add(Level.NOTE, f"{problem}. Give its folder when you use the adapter.")
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
