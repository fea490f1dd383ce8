"""Compare the planned weights of a rank with those of the network that training builds; runs inside ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddle_llm.config.layout import Layout


def differences(cases: dict[str, tuple[str, Path, dict[str, Any]]], layout: Layout) -> dict[str, list[str]]:
    """Return what differs on this rank, by case.

    Args:
        cases: (family, folder of the model, fields of RunConfig) by name.
        layout: Layout of the ranks.
    """
    if layout.world_size > 1:
        from tests.helpers.models.layout_steps import start_fleet

        start_fleet(layout)
    return {name: _differences(*case, layout) for name, case in cases.items()}


def _differences(family: str, folder: Path, fields: dict[str, Any], layout: Layout) -> list[str]:
    import paddle

    from paddle_llm.config.local_files.model_folder import read_model_facts
    from paddle_llm.config.run_config import RunConfig
    from paddle_llm.families import FAMILIES
    from paddle_llm.models.weights.names import canonical_parameters
    from paddle_llm.parallel.mesh import current_mesh
    from paddle_llm.peft.attach import attach
    from paddle_llm.peft.attachment import active_attachment
    from paddle_llm.peft.method import method_of
    from paddle_llm.planner.job import Job, Kernels, Method
    from paddle_llm.planner.shapes.weights import weights_of_stage
    from tests.helpers.models.networks import build

    config, facts = RunConfig(device="cpu", **fields), read_model_facts(folder)
    with paddle.utils.unique_name.guard():
        model = build(folder, layout=layout, **fields)
        attach(model, method_of(config), layout, quiet=True)
    attachment = active_attachment(model)
    built = [(name, parameter) for name, parameter in canonical_parameters(model, family)]
    built += [(tensor.name, tensor.parameter) for tensor in attachment.added] if attachment else []
    actual = sorted((name, tuple(p.shape), not p.stop_gradient) for name, p in built)
    job = Job(
        model=facts,
        layout=layout,
        seq_length=16,
        method=Method.of(config, "finetune"),
        kernels=Kernels.of(config, facts, FAMILIES[family]),
    )
    stage = current_mesh(layout).pipeline.rank
    planned = sorted((weight.name, weight.shape, weight.trained) for weight in weights_of_stage(job, stage))
    return [f"planned {one}" for one in planned if one not in actual] + [
        f"built {one}" for one in actual if one not in planned
    ]
