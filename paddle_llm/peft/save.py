"""Saves, loads and switches adapters. Their files contain full tensors under canonical names, independent of the layout.

adapter_config.json         {"format", "method": the settings, "model": `base_shape` of the base, "base": its name}
adapter_model.safetensors   the tensors that the method added, and the weights of the base that it trained
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import paddle
import paddle.distributed as dist

from paddle_llm.config.layout import Layout
from paddle_llm.core.artifacts import ADAPTER_CONFIG, ADAPTER_SAFETENSORS
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.models.weights.names import canonical_parameters
from paddle_llm.models.weights.shards import Shard, assemble
from paddle_llm.models.weights.vocabulary import unpad
from paddle_llm.parallel.gather import gathered
from paddle_llm.parallel.mesh import current_mesh
from paddle_llm.parallel.process.first_rank import on_first_rank
from paddle_llm.parallel.zero.stage3 import gathered_weight
from paddle_llm.peft.adapter_files import FORMAT, base_shape, open_tensors, read_method, write_adapter
from paddle_llm.peft.attach import attach, family_of
from paddle_llm.peft.attachment import Attachment, active_attachment, adapters_of
from paddle_llm.peft.base import stored_name
from paddle_llm.peft.merge import unmerge

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel

_Value = TypeVar("_Value")

# ---- saving ---------------------------------------------------------------------------------------------------------


def save_adapter(
    model: LanguageModel,
    layout: Layout,
    folder: str | Path,
    *,
    base: str = "",
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Write the active adapter, complete or not at all. Collective over all ranks.

    Memory: the size of the adapter, in host memory of the first rank of each pipeline stage.

    Args:
        model: Network with an active adapter.
        layout: Layout of the ranks.
        folder: Folder to write.
        base: Name of the base model to store; a local folder is stored by its absolute path.
        extra: Function that writes further files to the folder.

    Raises:
        UserError: If no adapter is active.
    """
    attachment = active_attachment(model)
    if attachment is None:
        raise UserError("No adapter is attached to this network, or none is active. Attach or activate one to save it.")
    tensors = _full_tensors(attachment, layout)
    adapter_config = {
        "format": FORMAT,
        "method": attachment.method.as_dict(),
        "model": _shape_of(model),
        "base": stored_name(base),
    }
    on_first_rank(lambda: write_adapter(Path(folder), adapter_config, tensors, extra=extra))


def adapter_parts(attachment: Attachment) -> list[tuple[str, paddle.Tensor, Shard]]:
    """Return (canonical name, parameter, this rank's part) of each tensor of an adapter."""
    own = [(tensor.name, tensor.parameter, tensor.shard) for tensor in attachment.added]
    return own + [(name, parameter, attachment.base_shard(name)) for name, parameter in attachment.retrained.items()]


def _full_tensors(attachment: Attachment, layout: Layout) -> dict[str, np.ndarray]:
    """Return all full tensors on the first rank of the job, and a part of them on the others."""
    model, family, mesh = attachment.model, attachment.family.name, current_mesh(layout)
    mine = adapter_parts(attachment)
    tables = _gather_from_all({name: shard for name, _, shard in mine})
    full = {}
    for name, parameter, shard in mine:
        with gathered_weight(model, parameter):
            parts = gathered(parameter, mesh.tensor) if shard.is_split else [parameter.numpy()]
        if parts is not None:
            shards = [tables[rank][name] for rank in mesh.tensor.ranks] if shard.is_split else [shard]
            full[name] = unpad(family, name, assemble(shards, parts), model.config)
    if mesh.pipeline.size > 1 and mesh.tensor.rank == mesh.data_rank == 0:
        stages: list[dict[str, np.ndarray]] = []
        dist.all_gather_object(stages, full, group=mesh.pipeline.group)
        full = {name: value for stage in stages for name, value in stage.items()}
    return full


def _gather_from_all(mine: _Value) -> list[_Value]:
    if dist.get_world_size() == 1:
        return [mine]
    values: list[_Value] = []
    dist.all_gather_object(values, mine)
    return values


def _shape_of(model: LanguageModel) -> dict[str, Any]:
    return base_shape(family_of(model).name, model.config)


# ---- loading --------------------------------------------------------------------------------------------------------


def load_adapter(
    model: LanguageModel, folder: str | Path, layout: Layout, name: str = "default", *, allow_pickle: bool = False
) -> LanguageModel:
    """Attach an adapter to a network and activate it. Collective over all ranks.

    If an adapter of this name with the same settings is attached, its values are replaced (to continue training).

    Args:
        model: The network.
        folder: Adapter folder.
        layout: Layout of the ranks.
        name: Name of the adapter in this network.
        allow_pickle: Whether PEFT's adapter_model.bin may be read.

    Returns:
        The given network.

    Raises:
        UserError: If the folder is not an adapter, a file is incomplete, or the adapter does not fit the base or the
            layout.
    """
    folder = Path(folder)
    method = read_method(folder, _shape_of(model), allow_pickle=allow_pickle)
    adapters = adapters_of(model)
    found = adapters.by_name.get(name) if adapters is not None else None
    if found is not None and found.method == method:
        unmerge(model)
        set_active(model, name)
        attachment = found
    else:
        set_active(model, None)
        # Before anything is attached, so that messages name the tensors of the file.
        _open_files(dict(canonical_parameters(model, family_of(model).name)), model, folder, allow_pickle)
        attach(model, method, layout, name=name, quiet=True)
        attachment = _require_active(model)
        attachment.keep_base()
    _read_tensors(attachment, folder, allow_pickle)
    return model


def continue_from(model: LanguageModel, folder: str | Path, *, allow_pickle: bool = False) -> None:
    """Give the active adapter the values of another one of the same structure, to continue training. Collective.

    Args:
        model: Network with an active adapter.
        folder: Adapter folder.
        allow_pickle: Whether PEFT's adapter_model.bin may be read.

    Raises:
        UserError: If the folder is not an adapter, or it has another base or other tensors.
    """
    read_method(Path(folder), _shape_of(model), allow_pickle=allow_pickle)
    _read_tensors(_require_active(model), Path(folder), allow_pickle)


def _require_active(model: LanguageModel) -> Attachment:
    attachment = active_attachment(model)
    if attachment is None:
        raise RuntimeError("the network has no active adapter")
    return attachment


def _open_files(
    base: Mapping[str, paddle.Tensor], model: LanguageModel, folder: Path, allow_pickle: bool
) -> WeightFiles:
    """Open an adapter's tensors for a network whose weights on this rank are `base`. Collective over all ranks."""
    mine = {name: len(parameter.shape) for name, parameter in base.items()}
    ndims = {name: ndim for table in _gather_from_all(mine) for name, ndim in table.items()}
    return open_tensors(folder, family_of(model).name, ndims, model.config, allow_pickle=allow_pickle)


@paddle.no_grad()
def _read_tensors(attachment: Attachment, folder: Path, allow_pickle: bool) -> None:
    files = _open_files(attachment.base, attachment.model, folder, allow_pickle)
    mine = adapter_parts(attachment)
    known = {name for names in _gather_from_all([name for name, *_ in mine]) for name in names}
    different = known.symmetric_difference(files.names())
    if different:
        raise UserError(
            f"{folder}: {ADAPTER_SAFETENSORS} does not match {ADAPTER_CONFIG}: "
            f"{counted(len(different), 'tensor')} missing or not expected, first {min(different)}. Copy both files again."
        )
    # Every rank checks all tensors, so that all ranks fail together; an adapter is small.
    broken = [name for name in files.names() if not np.isfinite(files.read(name, 0, 0, files.shape(name)[0])).all()]
    if broken:
        raise UserError(
            f"{folder}: {counted(len(broken), 'tensor')} with NaN or infinity, first {broken[0]}. Use an earlier checkpoint."
        )
    for name, parameter, shard in mine:
        expected = unpad(attachment.family.name, name, np.broadcast_to(0, shard.shape), attachment.model.config).shape
        if files.shape(name) != expected:
            raise UserError(
                f"{folder}: {name} has shape {list(files.shape(name))}, but this network needs {list(expected)}. "
                "Give the base that the adapter was trained on."
            )
        length = files.shape(name)[shard.axis]
        parts = [files.read(name, shard.axis, start, min(stop, length)) for start, stop in shard.ranges]
        values = np.concatenate(parts, axis=shard.axis).astype(np.float32, copy=False)
        padding = [(0, size - stored) for size, stored in zip(parameter.shape, values.shape, strict=True)]
        with gathered_weight(attachment.model, parameter):
            parameter.set_value(paddle.to_tensor(np.pad(values, padding)).astype(parameter.dtype))


# ---- switching ------------------------------------------------------------------------------------------------------


def set_active(model: LanguageModel, name: str | None) -> None:
    """Activate another adapter of a network; None: none, so that the network computes like its base.

    Raises:
        UserError: If there is no adapter of this name, or weights of the base were trained without keeping their old
            values.
    """
    adapters = adapters_of(model)
    if adapters is None or adapters.active == name:
        if adapters is None and name is not None:
            raise UserError(f"No adapter is attached to this network, so {name!r} cannot be activated. Load it first.")
        return
    if name is not None and name not in adapters.by_name:
        raise UserError(f"Unknown adapter: {name!r}. Use one of {', '.join(adapters.by_name)}.")
    unmerge(model)
    if adapters.active is not None:
        adapters.by_name[adapters.active].switch_off()
    adapters.active = None
    if name is not None:
        adapters.by_name[name].switch_on()
        adapters.active = name
