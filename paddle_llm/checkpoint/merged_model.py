"""One model folder from any layout: full tensors in safetensors, one file per pipeline stage, under PaddleNLP's names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import paddle.distributed as dist
from safetensors.numpy import save_file

from paddle_llm.checkpoint.folder import publish
from paddle_llm.config.layout import Layout
from paddle_llm.parallel.gather import full_tensors, is_stage_writer, stage_index

INDEX = "model.safetensors.index.json"


def save_merged_model(model, layout: Layout, folder: Path, *, tokenizer=None) -> None:
    """Gather `model` and write it to `folder`, complete or not at all. Collective over all ranks.

    Memory: one stage's full weights on each stage's writing rank, in host memory.
    """
    staged = folder.with_name(folder.name + ".saving")
    if dist.get_rank() == 0:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
    _barrier()
    name = _file_name(stage_index(layout), layout.pipeline)
    tensors = {key: value for key, value in full_tensors(model, layout) if value is not None}
    if is_stage_writer(layout):
        save_file(tensors, staged / name, metadata={"format": "np"})
    sizes = _share({key: (name, value.nbytes) for key, value in tensors.items()})
    if dist.get_rank() == 0:
        _write_index(staged, sizes)
        _write_config(model, staged)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(staged))
        publish(staged, folder)
    _barrier()


def _file_name(stage: int, stages: int) -> str:
    return "model.safetensors" if stages == 1 else f"model-{stage + 1:05}-of-{stages:05}.safetensors"


def _share(mine: dict) -> dict:
    """Every rank's table, merged; tied weights stand on two stages and are kept once, the first stage's."""
    if dist.get_world_size() == 1:
        return mine
    tables: list[dict] = []
    dist.all_gather_object(tables, mine)
    merged: dict = {}
    for table in tables:
        for key, value in table.items():
            merged.setdefault(key, value)
    return merged


def _write_index(folder: Path, sizes: dict) -> None:
    files = {key: name for key, (name, _) in sizes.items()}
    if set(files.values()) == {"model.safetensors"}:
        return
    index = {"metadata": {"total_size": sum(size for _, size in sizes.values())}, "weight_map": files}
    (folder / INDEX).write_text(json.dumps(index, indent=1))


def _write_config(model, folder: Path) -> None:
    """config.json of the whole model: nothing of the layout it was trained on."""
    config = model.config.__class__.from_dict(model.config.to_dict())
    for key in ("tensor_parallel_degree", "pipeline_parallel_degree", "virtual_pp_degree"):
        setattr(config, key, 1)
    config.tensor_parallel_rank = 0
    config.sequence_parallel = False
    config.architectures = [type(model).__name__.removesuffix("Pipe")]
    config.save_pretrained(str(folder))


def _barrier() -> None:
    if dist.get_world_size() > 1:
        dist.barrier()
