"""Opens a checkpoint of PaddleNLP's Trainer (3.0.0b4): files of single ranks, sharding-io, or unified.

Converted are all tensors, the step, and the states of the schedule and of the loss scaler. Not converted are the random
states, which belong to ranks, and training_args.bin, a pickle of a Python object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llm.checkpoint.convert.rank_files import RankFiles
from paddle_llm.checkpoint.convert.source import MASTER_WEIGHTS, WEIGHTS, Network, Part, Source, SourceTensor
from paddle_llm.checkpoint.convert.unified_files import OPTIMIZER_INDEX, UnifiedFiles
from paddle_llm.checkpoint.folder import read_manifest
from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.core.artifacts import MANIFEST, MODEL_CONFIG, TRAINER_STATE
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.families.shape import find_family
from paddle_llm.models.weights.names import IGNORED_ENDS, canonical_name, is_tied
from paddle_llm.models.weights.paddle_pickles import PickledTensor, read_paddle_pickle
from paddle_llm.models.weights.vocabulary import plain_config
from paddle_llm.models.weights.weight_shapes import weight_shapes

if TYPE_CHECKING:
    import numpy as np
    from paddlenlp.transformers import PretrainedConfig

    from paddle_llm.families import Family

SCHEDULER, SCALER = "scheduler.pdparams", "scaler.pdparams"
_ADAPTERS = ("lora_config.json", "prefix_model_config.json", "vera_config.json", "lokr_config.json", "reft_config.json")
_RANDOM = "which belong to the ranks of the job: dropout draws other values than without the interruption"
_NOT_CONVERTED = {
    "rng_state*.pth": f"random states, {_RANDOM}",
    "random_states_*.pdstate": f"random states, {_RANDOM}",
    "meter.json": "metrics, which begin again",
}


def is_paddlenlp(folder: Path) -> bool:
    """Return whether a folder is a checkpoint of PaddleNLP's Trainer, or one of an earlier version of this library."""
    return (folder / OPTIMIZER_INDEX).is_file() or any(folder.glob("model_state*.pdparams"))


def open_paddlenlp(folder: Path, *, allow_pickle: bool = False) -> Source:
    """Open a checkpoint of PaddleNLP's Trainer.

    Args:
        folder: Folder of the checkpoint.
        allow_pickle: Whether its pickles may be read. Only tensors, numbers and text are read from them.

    Raises:
        UserError: If it needs pickles that may not be read, is incomplete, or its network is not supported.
    """
    _refuse_adapters(folder)
    is_unified = (folder / OPTIMIZER_INDEX).is_file()
    if not allow_pickle:
        _refuse_pickles(folder, is_unified)
    state = _trainer_state(folder)
    files = UnifiedFiles(folder) if is_unified else RankFiles(folder)
    network, config = _network(folder, {name for _, name, _ in files.parts()})
    tensors = _tensors(network, files.parts(), network.padded)
    missing = [name for name in network.shapes if f"{WEIGHTS}/{name}" not in tensors]
    if missing:
        raise UserError(
            f"{folder} lacks {missing[0]}, a weight of the network in its {MODEL_CONFIG}. Copy the checkpoint again."
        )
    title, layout, batch = _origin(folder, files)
    return Source(
        folder,
        title,
        network.family,
        config,
        layout,
        state["global_step"],
        tensors,
        trainer_state=state,
        scheduler=_plain(folder / SCHEDULER),
        scaler=_plain(folder / SCALER),
        global_batch=batch or _global_batch(state),
        dropped=_dropped(folder),
    )


def _origin(folder: Path, files: RankFiles | UnifiedFiles) -> tuple[str, Layout, int | None]:
    """Return the name of a checkpoint's format, its layout, and its global batch if this library recorded it.

    Raises:
        UserError: If it is an incomplete checkpoint of an earlier version of this library.
    """
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        title = "a checkpoint of paddle_llm 0.2 or earlier"
        return title, Layout(**manifest["layout"]), manifest["global_batch"]
    if isinstance(files, UnifiedFiles):
        return "a unified checkpoint of PaddleNLP", files.layout, None
    sharded = "a sharded checkpoint of PaddleNLP (sharding-io)"
    return sharded if files.is_sharding_io else "a checkpoint of PaddleNLP", files.layout, None


def _dropped(folder: Path) -> dict[str, str]:
    """Return the files that are not converted, several of one kind by their pattern -> reason."""
    found = {}
    for pattern, why in _NOT_CONVERTED.items():
        names = sorted(file.name for file in folder.glob(pattern))
        if names:
            found[names[0] if len(names) == 1 else f"{pattern} ({len(names)} files)"] = why
    return found


def _refuse_adapters(folder: Path) -> None:
    adapter = next((name for name in _ADAPTERS if (folder / name).is_file()), None)
    if adapter is not None:
        raise UserError(
            f"{folder} contains an adapter of PaddleNLP ({adapter}), which is not converted: this library has other adapters. Merge "
            "it with PaddleNLP (llm/tools/merge_lora_params.py), and train from the result."
        )


def _refuse_pickles(folder: Path, is_unified: bool) -> None:
    names = [SCHEDULER, SCALER] if is_unified else ["*.pdparams", "*.pdopt"]
    found = [file.name for name in names for file in sorted(folder.glob(name))]
    if found:
        raise UserError(
            f"{folder} contains pickles, which may contain code: {', '.join(found[:3])}{' ...' if len(found) > 3 else ''}. Add "
            "--allow_pickle. Only tensors, numbers and text are read from them; anything else is refused."
        )


def _trainer_state(folder: Path) -> dict[str, Any]:
    if not (folder / TRAINER_STATE).is_file():
        raise UserError(f"{folder} is incomplete: it has no {TRAINER_STATE}. Choose another checkpoint.")
    state = read_json_object(folder / TRAINER_STATE)
    if type(state.get("global_step")) is not int or state["global_step"] < 0:
        raise UserError(f"{folder / TRAINER_STATE} has no valid global_step. Choose another checkpoint.")
    return state


def _global_batch(state: Mapping[str, Any]) -> int | None:
    """Return the samples per step, if all steps had the same number; None if the state does not show it."""
    consumed, step = state.get("consumed_samples"), state["global_step"]
    if type(consumed) is not int or consumed <= 0 or step == 0 or consumed % step:
        return None
    return consumed // step


def _network(folder: Path, names: set[str]) -> tuple[Network, PretrainedConfig]:
    """Return the network, and its configuration without vocabulary padding."""
    facts = read_model_facts(folder)
    family: Family = find_family(facts)
    padded = family.load("config_class").from_dict(json.loads((folder / MODEL_CONFIG).read_text()))
    # config.json does not record these flags.
    for flag, matrix in (("fuse_attention_qkv", ".qkv_proj."), ("fuse_attention_ffn", ".gate_up_fused_proj.")):
        if hasattr(padded, flag) and any(matrix in name for name in names):
            setattr(padded, flag, True)
    config = plain_config(padded)
    return Network(folder, family, padded, weight_shapes(config, family)), config


def _tensors(
    network: Network, parts: Iterable[tuple[str, str, Sequence[Part]]], config: PretrainedConfig
) -> dict[str, SourceTensor]:
    """Return the tensors by key. Of a weight that two pipeline stages have, the first stage's is used."""
    family = network.family.name
    tied = is_tied(family, config)
    found: dict[str, SourceTensor] = {}
    for kind, name, held in parts:
        if name.endswith(IGNORED_ENDS):
            continue
        name = canonical_name(family, name, tied=tied)
        if f"{kind}/{name}" not in found:
            found[f"{kind}/{name}"] = network.tensor(kind, name, held)
    dtype = str(getattr(config, "dtype", None) or "float32")
    for key, master in list(found.items()):
        kind, _, name = key.partition("/")
        if kind != MASTER_WEIGHTS:
            continue
        weight = found.setdefault(f"{WEIGHTS}/{name}", _rounded(master, dtype))
        if weight.dtype == "float32":  # a unified checkpoint lists fp32 weights among the master weights, too
            del found[key]
    return found


def _rounded(master: SourceTensor, dtype: str) -> SourceTensor:
    """Return a weight that was not saved because it is its master weight, rounded."""

    def read() -> np.ndarray:
        import paddle

        rounded: np.ndarray = paddle.to_tensor(master.read(), place="cpu").astype(dtype).numpy()
        return rounded

    return SourceTensor(master.shape, dtype, read)


def _plain(file: Path) -> Mapping[str, Any] | None:
    """Return a pickled state as JSON values; None if the file does not exist.

    Raises:
        UserError: If it has a value that JSON cannot express.
    """
    if not file.is_file():
        return None
    found = {}
    for key, value in read_paddle_pickle(file).items():
        value = value.view().tolist() if isinstance(value, PickledTensor) else value
        if key != "StructuredToParameterName@@":
            found[key] = value
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file} has a value that is not a finite number or text: {error}. Save it again.") from None
    return found
