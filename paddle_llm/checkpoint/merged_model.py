"""Save a model folder from any layout: full tensors in safetensors, one file per pipeline stage."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle.distributed as dist

from paddle_llm.checkpoint.folder import staging_folder
from paddle_llm.checkpoint.model_formats import HF, PADDLENLP, tensors_to_save, write_config, write_tokenizer
from paddle_llm.config.layout import Layout
from paddle_llm.core.artifacts import SAFETENSORS, SAFETENSORS_INDEX
from paddle_llm.core.atomic_output import publish
from paddle_llm.models.configuration.generation_settings import write_generation
from paddle_llm.models.configuration.machine_paths import remove_paths
from paddle_llm.models.weights.files import write_safetensors
from paddle_llm.models.weights.full_weights import family_name, full_weights
from paddle_llm.models.weights.names import EMBEDDINGS
from paddle_llm.parallel.mesh import current_mesh

_Files = dict[str, tuple[str, int]]  # tensor -> file and bytes


def save_merged_model(
    model: Any,
    layout: Layout,
    folder: Path,
    *,
    tokenizer: Any = None,
    generation: dict[str, Any] | None = None,
    extra: Callable[[Path], None] | None = None,
    tokenizer_source: str | None = None,
    model_format: str = PADDLENLP,
) -> None:
    """Gather a model and write it to a folder, completely or not at all. Collective over all ranks.

    Memory: one stage's full weights on the first rank of each stage, in host memory.

    Args:
        model: Network without fleet's wrapper, or PipelineLayer.
        layout: Layout of the job.
        folder: Folder to write.
        tokenizer: Tokenizer to save beside the weights; None to save none.
        generation: Content of generation_config.json.
        extra: Function that writes further files to the folder; called last, on the first rank.
        tokenizer_source: Folder or published name from which the tokenizer was read.
        model_format: "paddlenlp", or "hf" for a folder that transformers loads.
    """
    staged = staging_folder(folder.parent, folder.name)
    rank = dist.get_rank()
    if rank == 0:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
    _barrier()
    mesh = current_mesh(layout)
    stage = mesh.pipeline.rank
    writes = mesh.tensor.rank == mesh.data_rank == 0
    name = SAFETENSORS if layout.pipeline == 1 else f"model-{stage + 1:05}-of-{layout.pipeline:05}.safetensors"
    tensors: dict[str, np.ndarray] = {}
    family = family_name(model)
    for key, value in full_weights(model, family, layout):
        if (
            writes and value is not None and not (stage > 0 and key == EMBEDDINGS[family])
        ):  # a tied head is written by the first stage
            tensors |= tensors_to_save(model_format, family, model.config, key, value)
    if writes:
        write_safetensors(staged / name, tensors, format="pt" if model_format == HF else "np")
    files = _share({key: (name, value.nbytes) for key, value in tensors.items()})
    if rank == 0:
        _write_index(staged, files)
        pads = generation is None or "pad_token_id" in generation
        write_config(model_format, model, family, staged, dtype=_usual_dtype(tensors), pads=pads)
        if tokenizer is not None:
            write_tokenizer(model_format, tokenizer, tokenizer_source, staged)
        write_generation(staged, generation or {})
        remove_paths(staged)
        if extra is not None:
            extra(staged)
        publish(staged, folder)
    _barrier()


def _share(mine: _Files) -> _Files:
    """Return the tables of all ranks, merged."""
    if dist.get_world_size() == 1:
        return mine
    tables: list[_Files] = []
    dist.all_gather_object(tables, mine)
    return {key: value for table in tables for key, value in table.items()}


def _write_index(folder: Path, files: _Files) -> None:
    names = {key: name for key, (name, _) in files.items()}
    if set(names.values()) == {SAFETENSORS}:
        return
    index = {"metadata": {"total_size": sum(size for _, size in files.values())}, "weight_map": names}
    (folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=1))


def _usual_dtype(tensors: dict[str, np.ndarray]) -> str:
    """Return the data type of most bytes."""
    sizes: Counter[str] = Counter()
    for value in tensors.values():
        sizes["bfloat16" if value.dtype == np.uint16 else value.dtype.name] += value.nbytes
    return sizes.most_common(1)[0][0] if sizes else "float32"


def _barrier() -> None:
    if dist.get_world_size() > 1:
        dist.barrier()
