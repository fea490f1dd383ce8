"""Turn the config of a cluster into small configs of the same kind, one for each sub-layout.

The model becomes small (`small_model.py`), the degrees are those of the sub-layout (`sub_layouts.py`), and the settings
are adapted to both (`settings.py`). The results are read by the reader of real configs, which checks all rules.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.config.reader import Resolved, entry_of, resolve, resolve_for_cluster
from paddle_llm.core.artifacts import MODEL_CONFIG
from paddle_llm.core.errors import ConfigError, UserError
from paddle_llm.models.configuration.hub import model_folder
from paddle_llm.rehearse.shrink.changes import Change, changes_of
from paddle_llm.rehearse.shrink.settings import micro_batches_of, shrunk_settings
from paddle_llm.rehearse.shrink.small_model import SmallModel, small_model
from paddle_llm.rehearse.shrink.sub_layouts import sub_layouts_of


@dataclass(frozen=True)
class Shrunk:
    """The small configs of a rehearsal.

    Attributes:
        configs: Resolved config of each sub-layout, in the order in which they run.
        model: Model that all of them train.
        remarks: What the sub-layouts do not cover, one line each.
        changes: Settings that differ from the real config.
    """

    configs: list[Resolved]
    model: SmallModel
    remarks: list[str]
    changes: list[Change]


def read_cluster_config(argv: list[str], world_size: int) -> Resolved:
    """Read and check a config as the cluster would.

    Args:
        argv: Words of the command line.
        world_size: Number of ranks on the cluster.

    Raises:
        ConfigError: If the config contains mistakes; the message lists all of them.
        UserError: If the config does not train, or the model's config.json cannot be found.
    """
    entry = entry_of(argv)
    resolved = resolve_for_cluster(argv, world_size=world_size, entry=entry)
    if not resolved.config.do_train:
        raise UserError("do_train is false, but a rehearsal is a short training. Add --do_train.")
    if resolved.facts is not None:
        return resolved
    model_folder(resolved.config.model_name_or_path, weights=False)
    return resolve(argv, world_size=world_size, entry=entry, device=resolved.config.device)


def shrink(real: Resolved, ranks: int, steps: int, folder: Path) -> Shrunk:
    """Return the small configs that rehearse a config on CPU ranks.

    Args:
        real: Config of the cluster.
        ranks: Largest number of ranks of a sub-layout.
        steps: Optimizer steps.
        folder: Folder to which the small config.json and other files for the reader are written.

    Raises:
        UserError: If there are too few ranks for any sub-layout.
    """
    assert real.facts is not None
    sub_layouts = sub_layouts_of(real.layout, ranks)
    tensor, stages, virtual = (
        max(getattr(layout, name) for layout in sub_layouts.layouts)
        for name in ("tensor", "pipeline", "virtual_stages")
    )
    model = small_model(real.facts, real.layout, real.config.max_seq_length, tensor, stages, virtual)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_CONFIG).write_text(json.dumps(model.facts.raw, indent=1))
    assert read_model_facts(folder) == model.facts
    micro_batches = micro_batches_of(real, sub_layouts.layouts)
    resolved = [
        _resolve(real, layout, model, folder, {"gradient_accumulation_steps": count, "max_steps": steps})
        for layout, count in zip(sub_layouts.layouts, micro_batches, strict=True)
    ]
    return Shrunk(resolved, model, sub_layouts.remarks, changes_of(real, resolved, model))


def _resolve(real: Resolved, layout: Layout, model: SmallModel, folder: Path, steps: dict[str, int]) -> Resolved:
    """Return the config of one sub-layout, read by the reader of real configs."""
    values = shrunk_settings(real, layout, model) | {
        "model_name_or_path": str(folder),
        "output_dir": str(folder / "output"),
        "device": "cpu",
        "do_train": True,
        "continue_training": False,
        **steps,
    }
    file = folder / "run.json"
    file.write_text(json.dumps(values))
    try:
        resolved = resolve([str(file)], world_size=layout.world_size, entry=real.entry, device="cpu")
    except ConfigError as error:
        raise RuntimeError(
            f"the small config of {layout} violates a rule that the real one satisfies: {error}"
        ) from error
    if resolved.layout != layout:
        raise RuntimeError(f"the small config of {layout} was read as {resolved.layout}")
    return resolved
