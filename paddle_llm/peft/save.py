"""Adapters in folders: full tensors under canonical names, whatever layout they were trained in; several over one base.

adapter_config.json         {"format", "method": the settings, "model": what the base must look like, "base"}
adapter_model.safetensors   what the method has added, and what it has trained of the base
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.adapters import what_it_holds
from paddle_llm.core.artifacts import ADAPTER_CONFIG, ADAPTER_SAFETENSORS
from paddle_llm.core.atomic_output import staged_folder
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.files import WeightFiles, write_safetensors
from paddle_llm.models.weights.full_weights import assemble
from paddle_llm.models.weights.names import canonical_parameters
from paddle_llm.models.weights.shards import Shard
from paddle_llm.models.weights.vocabulary import real_vocab_size, unpad
from paddle_llm.parallel.gather import gathered
from paddle_llm.parallel.mesh import current_mesh
from paddle_llm.parallel.process.first_rank import on_first_rank
from paddle_llm.parallel.zero.stage3 import visiting
from paddle_llm.peft.attach import attach, family_of
from paddle_llm.peft.attachment import Attachment, active_attachment, adapters_of
from paddle_llm.peft.base import lasting_name, read_described
from paddle_llm.peft.hugging_face.config import method_of_peft
from paddle_llm.peft.hugging_face.format import PeftTensors, is_peft
from paddle_llm.peft.merge import unmerge
from paddle_llm.peft.method import Method

FORMAT = 1


# ---- saving ---------------------------------------------------------------------------------------------------------


def save_adapter(
    model: Any,
    layout: Layout,
    folder: str | Path,
    *,
    base: str = "",
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Write the active adapter, complete or not at all. Collective over all ranks.

    Memory: the adapter, in host memory of the first rank of each pipeline stage.

    Args:
        base: the base model's name, for whoever reads the folder; a path is kept absolute.
        extra: Function that writes further files to the folder.

    Raises:
        UserError: nothing is attached.
    """
    attachment = active_attachment(model)
    if attachment is None:
        raise UserError("no adapter is attached to this network, or none is active: nothing to save")
    tensors = _full_tensors(attachment, layout)
    described = {
        "format": FORMAT,
        "method": attachment.method.as_dict(),
        "model": _shape_of(model),
        "base": lasting_name(base),
    }
    on_first_rank(lambda: write_adapter(Path(folder), described, tensors, extra=extra))


def write_adapter(
    folder: Path,
    described: dict[str, Any],
    tensors: dict[str, np.ndarray],
    *,
    format: str = "np",
    extra: Callable[[Path], None] | None = None,
) -> None:
    """A folder with these two files, in place of what is there when it is whole.

    Args:
        format: of `write_safetensors`.
        extra: Function that writes further files to the folder.

    Raises:
        UserError: it cannot be written, or the disk is full.
    """
    with staged_folder(folder) as staged:
        write_safetensors(staged / ADAPTER_SAFETENSORS, tensors, format=format)
        (staged / ADAPTER_CONFIG).write_text(json.dumps(described, indent=1))
        if extra is not None:
            extra(staged)


def adapter_parts(attachment: Attachment) -> list[tuple[str, Any, Shard]]:
    """(canonical name, parameter, this rank's part) of what belongs to an adapter."""
    own = [(tensor.name, tensor.parameter, tensor.shard) for tensor in attachment.added]
    return own + [(name, parameter, attachment.base_shard(name)) for name, parameter in attachment.retrained.items()]


def _full_tensors(attachment: Attachment, layout: Layout) -> dict[str, np.ndarray]:
    """All full tensors, on the job's first rank; something less on the others."""
    model, family, mesh = attachment.model, attachment.family.name, current_mesh(layout)
    mine = adapter_parts(attachment)
    tables = _of_all_ranks({name: shard for name, _, shard in mine})
    full = {}
    for name, parameter, shard in mine:
        with visiting(model, parameter):
            parts = gathered(parameter, mesh.tensor) if shard.is_split else [parameter.numpy()]
        if parts is not None:
            shards = [tables[rank][name] for rank in mesh.tensor.ranks] if shard.is_split else [shard]
            full[name] = unpad(family, name, assemble(shards, parts), model.config)
    if mesh.pipeline.size > 1 and mesh.tensor.rank == mesh.data_rank == 0:
        stages: list[dict[str, np.ndarray]] = []
        dist.all_gather_object(stages, full, group=mesh.pipeline.group)
        full = {name: value for stage in stages for name, value in stage.items()}
    return full


def _of_all_ranks(mine: Any) -> list[Any]:
    if dist.get_world_size() == 1:
        return [mine]
    tables: list[Any] = []
    dist.all_gather_object(tables, mine)
    return tables


def _shape_of(model: Any) -> dict[str, Any]:
    return base_shape(family_of(model).name, model.config)


def base_shape(family: str, config: Any) -> dict[str, Any]:
    """What a base must have in common with the one that an adapter was trained on.

    Args:
        config: PaddleNLP's configuration of it.
    """
    return {
        "family": family,
        "hidden_size": config.hidden_size,
        "layers": getattr(config, "n_layer", None) or config.num_hidden_layers,
        "vocab_size": real_vocab_size(config),
    }


# ---- loading --------------------------------------------------------------------------------------------------------


def load_adapter(
    model: Any, folder: str | Path, layout: Layout, name: str = "default", *, allow_pickle: bool = False
) -> Any:
    """Put an adapter over a network and make it the active one. Collective over all ranks.

    Where an adapter of this name and these settings is attached already, its values are replaced (to go on training).

    Args:
        allow_pickle: whether to read PEFT's adapter_model.bin.

    Returns:
        the network, the object that was given.

    Raises:
        UserError: no adapter there, one of another base or for another layout, or a file that is incomplete.
    """
    folder = Path(folder)
    method = read_method(folder, model, allow_pickle=allow_pickle)
    adapters = adapters_of(model)
    found = adapters.by_name.get(name) if adapters is not None else None
    if found is not None and found.method == method:
        unmerge(model)
        set_active(model, name)
        attachment = found
    else:
        set_active(model, None)
        # Before anything is attached, so that a message names the tensors of the file.
        _open_over(dict(canonical_parameters(model, family_of(model).name)), model, folder, allow_pickle)
        attach(model, method, layout, family_of(model), seed=0, name=name, quiet=True)
        attachment = active_attachment(model)
        attachment.keep_base()
    _read_tensors(attachment, folder, allow_pickle)
    return model


def continue_from(model: Any, folder: str | Path, *, allow_pickle: bool = False) -> None:
    """Give the active adapter the values of another of the same structure, to go on training. Collective over all ranks.

    Raises:
        UserError: no adapter there, one of another base, or one that has other tensors.
    """
    read_method(Path(folder), model, allow_pickle=allow_pickle)
    _read_tensors(active_attachment(model), Path(folder), allow_pickle)


def read_method(
    folder: Path, model: Any = None, *, base: dict[str, Any] | None = None, allow_pickle: bool = False
) -> Method:
    """The settings of an adapter in a folder, this library's or Hugging Face PEFT's.

    Args:
        model: a network that it is to suit.
        base: the `base_shape` of one that it is to suit.
        allow_pickle: whether to read PEFT's adapter_model.bin.
    """
    described = described_in(folder)
    wanted = _shape_of(model) if model is not None else base
    if is_peft(described):
        return method_of_peft(folder, described, wanted, allow_pickle=allow_pickle)
    method, shape = described["method"], described["model"]
    if wanted is not None and shape != wanted:
        differing = ", ".join(f"{key} {value}" for key, value in shape.items() if value != wanted.get(key))
        raise UserError(f"the adapter in {folder} was trained on another base ({differing}); this one is {wanted}")
    return Method.from_dict(method)


def described_in(folder: Path) -> dict[str, Any]:
    """adapter_config.json, with what an adapter of this library or of PEFT's says there."""
    described = read_described(folder)
    if not is_peft(described) and not all(isinstance(described.get(key), dict) for key in ("method", "model")):
        raise UserError(
            f"{folder / ADAPTER_CONFIG} is neither of PEFT (it has no peft_type) nor of this library.{what_it_holds(folder)}"
        )
    return described


def open_tensors(
    folder: Path, family: str, base: Mapping[str, int], config: Any, *, allow_pickle: bool = False
) -> WeightFiles:
    """An adapter's tensors under canonical names, this library's or PEFT's.

    Args:
        base: canonical name -> number of dimensions of the base's weights.
        config: PaddleNLP's configuration of the base.
        allow_pickle: whether to read PEFT's adapter_model.bin.

    Raises:
        UserError: a file that is missing or broken, or tensors that belong to no weight of the base.
    """
    described = described_in(folder)
    if is_peft(described):
        return PeftTensors(folder, described, family, base, config, allow_pickle=allow_pickle)
    return WeightFiles(folder, file=ADAPTER_SAFETENSORS)


def _open_over(base: Mapping[str, Any], model: Any, folder: Path, allow_pickle: bool) -> WeightFiles:
    """An adapter's tensors for a network, whose weights of this rank are `base`. Collective over all ranks."""
    mine = {name: len(parameter.shape) for name, parameter in base.items()}
    ndims = {name: ndim for table in _of_all_ranks(mine) for name, ndim in table.items()}
    return open_tensors(folder, family_of(model).name, ndims, model.config, allow_pickle=allow_pickle)


@paddle.no_grad()
def _read_tensors(attachment: Attachment, folder: Path, allow_pickle: bool) -> None:
    files = _open_over(attachment.base, attachment.model, folder, allow_pickle)
    mine = adapter_parts(attachment)
    known = {name for names in _of_all_ranks([name for name, *_ in mine]) for name in names}
    different = known.symmetric_difference(files.names())
    if different:
        raise UserError(
            f"{folder / ADAPTER_SAFETENSORS} does not hold what {ADAPTER_CONFIG} says: {', '.join(sorted(different)[:3])} ..."
        )
    # All tensors on every rank, so that all ranks end alike; an adapter is small.
    broken = [name for name in files.names() if not np.isfinite(files.read(name, 0, 0, files.shape(name)[0])).all()]
    if broken:
        raise UserError(
            f"{folder}: {len(broken)} tensors hold NaN or infinity, the first is {broken[0]}. Use an earlier checkpoint."
        )
    for name, parameter, shard in mine:
        wanted = unpad(attachment.family.name, name, np.broadcast_to(0, shard.shape), attachment.model.config).shape
        if files.shape(name) != wanted:
            raise UserError(f"{folder}: {name} is {list(files.shape(name))}, this network has {list(wanted)}")
        length = files.shape(name)[shard.axis]
        parts = [files.read(name, shard.axis, start, min(stop, length)) for start, stop in shard.ranges]
        values = np.concatenate(parts, axis=shard.axis).astype(np.float32, copy=False)
        missing = [(0, size - there) for size, there in zip(parameter.shape, values.shape, strict=True)]
        with visiting(attachment.model, parameter):
            parameter.set_value(paddle.to_tensor(np.pad(values, missing)).astype(parameter.dtype))


# ---- switching ------------------------------------------------------------------------------------------------------


def set_active(model: Any, name: str | None) -> None:
    """Let the network compute with another of its adapters; None: as the base does.

    Raises:
        UserError: no adapter of this name; weights of the base were trained and their values not kept.
    """
    adapters = adapters_of(model)
    if adapters is None or adapters.active == name:
        if adapters is None and name is not None:
            raise UserError(f"no adapter is attached to this network: there is no {name!r}")
        return
    if name is not None and name not in adapters.by_name:
        raise UserError(f"there is no adapter {name!r}; there are: {', '.join(adapters.by_name)}")
    unmerge(model)
    if adapters.active is not None:
        adapters.by_name[adapters.active].switch_off()
    adapters.active = None
    if name is not None:
        adapters.by_name[name].switch_on()
        adapters.active = name
