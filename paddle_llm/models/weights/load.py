"""Load the weights of a folder, under PaddleNLP's or Hugging Face's names; each rank reads its own part.

Parameters are read one at a time. The memory needed in addition to the network is one rank's part of one parameter (for
.pdparams of older versions, one file).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.core.errors import UserError
from paddle_llm.families import Family
from paddle_llm.models.weights.files import WeightFiles, is_finite
from paddle_llm.models.weights.findings import Findings, agree, report
from paddle_llm.models.weights.locate import Column, WeightLocator
from paddle_llm.models.weights.names import canonical_parameters
from paddle_llm.models.weights.shards import Shard, shard_of
from paddle_llm.models.weights.vocabulary import real_vocab_size, vocabulary_axis

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

    from paddle_llm.models.protocols import LanguageModel


def load_weights(model: LanguageModel, folder: Path, family: Family, *, allow_pickle: bool = False) -> None:
    """Set every parameter of this rank from the files of a folder. Collective over all ranks.

    Args:
        model: Network; changed in place.
        folder: Folder of the weights.
        family: Family of the network.
        allow_pickle: Whether to read torch's pickles if the folder has no other weights; default False.

    Raises:
        UserError: If weights are missing or have the wrong shape, or files are corrupt or not supported.
    """
    findings, problem = Findings(), None
    files: WeightFiles | None = None
    try:
        files = WeightFiles(folder, allow_pickle=allow_pickle)
        _load_parameters(model, files, family, findings)
    except UserError as error:
        problem = str(error)
    union = agree(findings, problem)
    assert files is not None  # `agree` raises on all ranks if one could not open them
    report(folder, files, union)


def locate_weights(
    files: WeightFiles, shapes: dict[str, tuple[int, ...]], family: Family, config: PretrainedConfig
) -> dict[str, list[Column]]:
    """Return where the files store each weight, for one process.

    Args:
        files: Weight files.
        shapes: Full shapes without padding by canonical name.
        family: Family of the model.
        config: PaddleNLP's configuration.

    Raises:
        UserError: If weights are missing or have the wrong shape.
    """
    findings, located = Findings(), {}
    locator = WeightLocator(files, family.name, config, findings)
    for name, shape in shapes.items():
        columns = locator.locate(name, shape, len(shape) - 1)
        if columns is not None:
            located[name] = columns
    locator.check_tied_head()
    report(files.folder, files, findings)
    return located


def _load_parameters(model: LanguageModel, files: WeightFiles, family: Family, findings: Findings) -> None:
    import paddle

    config = model.config
    locator = WeightLocator(files, family.name, config, findings)
    degree, rank = max(config.tensor_parallel_degree, 1), config.tensor_parallel_rank
    for name, parameter in canonical_parameters(model, family.name):
        split = bool(getattr(parameter, "is_distributed", False))
        shard = shard_of(family.name, name, parameter.shape, split, config, degree, rank)
        shape = list(shard.shape)
        vocabulary = vocabulary_axis(family.name, name)
        if vocabulary is not None:
            shape[vocabulary] = real_vocab_size(config)
        columns = locator.locate(name, tuple(shape), shard.axis)
        if columns is None:
            continue
        values = read_shard(files, columns, shard, tuple(shape))
        if not is_finite(values):
            findings.not_finite.append(columns[0].source)
        with paddle.no_grad():
            parameter.set_value(paddle.to_tensor(values).astype(parameter.dtype))
    locator.check_tied_head()


def read_shard(files: WeightFiles, columns: list[Column], shard: Shard, shape: tuple[int, ...]) -> np.ndarray:
    """Return a rank's part of a parameter.

    Args:
        files: Weight files.
        columns: Locations of the parts along `shard.axis`, ascending.
        shard: Part of this rank.
        shape: Shape of the full parameter without padding; padding is zero.
    """
    parts = []
    for start, stop in shard.ranges:
        for column in columns:
            begin, end = max(start, column.start), min(stop, column.stop)
            if begin >= end:
                continue
            source_begin = column.source_start + begin - column.start
            axis = len(shape) - 1 - shard.axis if column.transpose else shard.axis
            part = files.read(column.source, axis, source_begin, source_begin + end - begin)
            parts.append(part.T if column.transpose else part)
    local = list(shard.shape)
    local[shard.axis] = sum(stop - start for start, stop in shard.ranges)
    if not parts:  # this rank holds padding only
        return np.zeros(local, np.float32)
    values = np.concatenate(parts, axis=shard.axis) if len(parts) > 1 else parts[0]
    if list(values.shape) != local:
        values = np.pad(values, [(0, wanted - have) for wanted, have in zip(local, values.shape, strict=True)])
    return np.ascontiguousarray(values)
