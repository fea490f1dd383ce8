"""Save a model folder from any layout: full tensors in safetensors, one file per pipeline stage."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from paddle_llm.data.tokenizers.protocol import Tokenizer
    from paddle_llm.models.protocols import LanguageModel

_TensorFiles = dict[str, tuple[str, int]]  # name of a tensor -> name of its file, bytes


def save_merged_model(
    model: LanguageModel,
    layout: Layout,
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    generation: dict[str, Any] | None = None,
    extra: Callable[[Path], None] | None = None,
    tokenizer_source: str | None = None,
    model_format: str = PADDLENLP,
) -> None:
    """Gather a model and write it to a folder, completely or not at all. Collective over all ranks.

    Memory: the full weights of a pipeline stage, in host memory of the first rank of the stage.

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
    file = SAFETENSORS if layout.pipeline == 1 else f"model-{stage + 1:05}-of-{layout.pipeline:05}.safetensors"
    tensors: dict[str, np.ndarray] = {}
    family = family_name(model)
    for name, value in full_weights(model, family, layout):
        is_tied_head = stage > 0 and name == EMBEDDINGS[family]  # the first stage writes it
        if writes and value is not None and not is_tied_head:
            tensors |= tensors_to_save(model_format, family, model.config, name, value)
    if writes:
        write_safetensors(staged / file, tensors, format="pt" if model_format == HF else "np")
    files = _gather_files({name: (file, value.nbytes) for name, value in tensors.items()})
    if rank == 0:
        _write_index(staged, files)
        has_padding_token = generation is None or "pad_token_id" in generation
        dtype = _most_common_dtype(tensors)
        write_config(model_format, model, family, staged, dtype=dtype, has_padding_token=has_padding_token)
        if tokenizer is not None:
            write_tokenizer(model_format, tokenizer, tokenizer_source, staged)
        write_generation(staged, generation or {})
        remove_paths(staged)
        if extra is not None:
            extra(staged)
        publish(staged, folder)
    _barrier()


def _gather_files(own: _TensorFiles) -> _TensorFiles:
    """Return the tensors and files that all ranks have written. Collective over all ranks."""
    if dist.get_world_size() == 1:
        return own
    of_ranks: list[_TensorFiles] = []
    dist.all_gather_object(of_ranks, own)
    return {name: file for files in of_ranks for name, file in files.items()}


def _write_index(folder: Path, files: _TensorFiles) -> None:
    names = {tensor: file for tensor, (file, _) in files.items()}
    if set(names.values()) == {SAFETENSORS}:
        return
    index = {"metadata": {"total_size": sum(size for _, size in files.values())}, "weight_map": names}
    (folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=1))


def _most_common_dtype(tensors: dict[str, np.ndarray]) -> str:
    """Return the data type that takes the most bytes; bfloat16 values are stored as uint16."""
    sizes: Counter[str] = Counter()
    for value in tensors.values():
        sizes["bfloat16" if value.dtype == np.uint16 else value.dtype.name] += value.nbytes
    return sizes.most_common(1)[0][0] if sizes else "float32"


def _barrier() -> None:
    if dist.get_world_size() > 1:
        dist.barrier()
