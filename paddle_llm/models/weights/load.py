"""Load the weights of a folder, under PaddleNLP's or Hugging Face's names; each rank reads its own part.

Parameters are read one at a time. The memory needed in addition to the network is one rank's part of one parameter (for
.pdparams of older versions, one file).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.core.console import say
from paddle_llm.core.counts import counted, counted_are
from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES, Family
from paddle_llm.models.weights import names
from paddle_llm.models.weights.files import DOUBLE, WeightFiles, is_finite
from paddle_llm.models.weights.shards import Shard, shard_of
from paddle_llm.models.weights.vocabulary import real_vocab_size, vocabulary_axis
from paddle_llm.models.weights.wrapper_names import why_adapter, why_empty, why_wrapped

_SHOWN = 8


@dataclass(frozen=True)
class Column:
    """Columns (or rows) [start, stop) of a parameter are [source_start, ...) of a tensor in the files."""

    start: int
    stop: int
    source: str
    source_start: int
    transpose: bool


@dataclass
class Findings:
    """Results of loading; shared between the ranks, so that all of them report and raise the same."""

    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)


def load_weights(model: Any, folder: Path, family: Family, *, allow_pickle: bool = False) -> None:
    """Set every parameter of this rank from the files of `folder`. Collective over all ranks.

    Args:
        model: Network.
        folder: Folder of the weights.
        family: Family of the network.
        allow_pickle: Whether to read torch's pickles if there is nothing else.

    Raises:
        UserError: If weights are missing or of the wrong shape, or files are corrupt or not supported.
    """
    findings, problem = Findings(), None
    files: WeightFiles | None = None
    try:
        files = WeightFiles(folder, allow_pickle=allow_pickle)
        _load_parameters(model, files, family, findings)
    except UserError as error:
        problem = str(error)
    union = _agree(findings, problem)
    assert files is not None  # _agree raises on all ranks if one could not open them
    _report(folder, files, union)


def locate_weights(
    files: WeightFiles, shapes: dict[str, tuple[int, ...]], family: Family, config: Any
) -> dict[str, list[Column]]:
    """Return where the files store each weight, for one process.

    Args:
        files: Weight files.
        shapes: Full shapes without padding by canonical name.
        family: Family of the model.
        config: PaddleNLP's configuration.

    Raises:
        UserError: If weights are missing or of the wrong shape.
    """
    findings, foreign, found = Findings(), is_hugging_face(files, family.name), {}
    for name, shape in shapes.items():
        columns = _locate(files, family.name, name, shape, len(shape) - 1, foreign, config, findings)
        if columns is not None:
            found[name] = columns
    _check_tied_head(files, family.name, config, foreign, findings)
    _report(files.folder, files, findings)
    return found


def _report(folder: Path, files: WeightFiles, findings: Findings) -> None:
    """Report the files and tensors of the folder that were not read.

    Raises:
        UserError: If weights are missing or wrong.
    """
    if findings.missing or findings.wrong or findings.not_finite:
        raise UserError(_describe(folder, files, findings))
    unexpected = sorted(
        name for name in files.names() if name not in findings.used and not name.endswith(names.IGNORED_ENDS)
    )
    if unexpected:
        say(
            f"{folder}: {counted_are(len(unexpected), 'tensor')} not part of this model and ignored: {_shorten(unexpected)}"
        )
    double = sorted(name for name in findings.used if name in files and files.dtype(name) in DOUBLE)
    if double:
        say(f"{folder}: {counted_are(len(double), 'weight')} stored in float64 and read as float32: {_shorten(double)}")
    if files.copies:
        say(
            f"{folder}: {counted_are(len(files.copies), 'tensor')} in more than one file: {_shorten(sorted(files.copies))}. "
            "The copy in the file that the index names is read."
        )
    if files.unlisted:
        say(
            f"{folder}: {counted_are(len(files.unlisted), 'tensor')} not in the index and not read: {_shorten(sorted(files.unlisted))}"
        )
    if files.unread:
        say(f"{folder}: {counted_are(len(files.unread), 'other file')} not read: {_shorten(list(files.unread))}")


def _load_parameters(model: Any, files: WeightFiles, family: Family, findings: Findings) -> None:
    import paddle

    config = model.config
    foreign = is_hugging_face(files, family.name)
    degree, rank = max(config.tensor_parallel_degree, 1), config.tensor_parallel_rank
    for name, parameter in names.canonical_parameters(model, family.name):
        split = bool(getattr(parameter, "is_distributed", False))
        shard = shard_of(family.name, name, parameter.shape, split, config, degree, rank)
        shape = list(shard.shape)
        vocabulary = vocabulary_axis(family.name, name)
        if vocabulary is not None:
            shape[vocabulary] = real_vocab_size(config)
        columns = _locate(files, family.name, name, tuple(shape), shard.axis, foreign, config, findings)
        if columns is None:
            continue
        values = read_shard(files, columns, shard, tuple(shape))
        if not is_finite(values):
            findings.not_finite.append(columns[0].source)
        with paddle.no_grad():
            parameter.set_value(paddle.to_tensor(values).astype(parameter.dtype))
    _check_tied_head(files, family.name, config, foreign, findings)


def is_hugging_face(files: WeightFiles, family: str) -> bool:
    """Return whether the files have Hugging Face's names and layouts; metadata decide if names are ambiguous."""
    spec = FAMILIES[family]
    if not spec.weights.same_names and any(name.startswith(spec.base_prefix) for name in files.names()):
        return False
    # ChatGLM-6B, saved by PaddleNLP without its head, has names that begin like Hugging Face's.
    sign = spec.weights.hugging_face_sign
    if sign is not None and any(name.startswith(sign) for name in files.names()):
        return True
    return files.format not in ("np", "pd")


def _candidates(
    files: WeightFiles, family: str, canonical: str, ndim: int, foreign: bool
) -> tuple[tuple[str, ...], bool]:
    """Return the names that a weight may have in these files, and whether it is stored transposed.

    Weights of a network without its head lack the prefix. As in transformers, all names of a folder have it or none
    has.
    """
    if not foreign:
        full, transpose = canonical, False
        candidates, prefix = names.paddlenlp_names(family, canonical), FAMILIES[family].base_prefix
    else:
        there = names.hugging_face(family, canonical, ndim)
        full, transpose = there.name, there.transpose
        candidates = names.hugging_face_names(family, full)
        prefix = FAMILIES[family].weights.hugging_face_base_prefix
    return ((full,) if prefix and _has_prefix(files, prefix) else candidates), transpose


def _has_prefix(files: WeightFiles, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in files.names())


def _locate(
    files: WeightFiles,
    family: str,
    name: str,
    shape: tuple[int, ...],
    axis: int,
    foreign: bool,
    config: Any,
    findings: Findings,
) -> list[Column] | None:
    """Return where the files store a parameter of this full shape; None, with a finding, if they do not."""

    def find(canonical: str, ndim: int) -> tuple[str, bool] | None:
        """Return the name in the files, and whether it is stored transposed."""
        candidates, transpose = _candidates(files, family, canonical, ndim, foreign)
        return next(((candidate, transpose) for candidate in candidates if candidate in files), None)

    direct = find(name, len(shape))
    if direct is not None:
        source, transpose = direct
        findings.used.add(source)
        stored = files.shape(source)
        if stored != (shape[::-1] if transpose else shape):
            wanted = shape[::-1] if transpose else shape
            findings.wrong.append(f"{source} has shape {list(stored)}, config.json requires {list(wanted)}")
            return None
        if not _is_weight(files, source, findings):
            return None
        return [Column(0, shape[axis], source, 0, transpose)]
    columns = []
    for piece in names.compositions(family, name, config):
        found = find(piece.source, len(shape))
        if found is None:
            break
        findings.used.add(found[0])
        if not _is_weight(files, found[0], findings):
            return None
        columns.append(Column(piece.start, piece.stop, found[0], piece.source_start, found[1]))
    else:
        if columns:
            return columns if _wide_enough(files, columns, shape, findings) else None
    expected = names.hugging_face(family, name, len(shape)).name if foreign else name
    findings.missing.append(f"{expected} {list(shape)}")
    return None


def _is_weight(files: WeightFiles, source: str, findings: Findings) -> bool:
    if files.is_weight(source):
        return True
    findings.wrong.append(
        f"{source} is stored as {files.dtype(source)} (quantized weights are not supported: use fp32, fp16 or bf16)"
    )
    return False


def _wide_enough(files: WeightFiles, columns: list[Column], shape: tuple[int, ...], findings: Findings) -> bool:
    for column in columns:
        stored = files.shape(column.source)
        rows, width = (stored[1], stored[0]) if column.transpose else (stored[0], stored[1])
        if rows != shape[0] or width < column.source_start + column.stop - column.start:
            findings.wrong.append(
                f"{column.source} has shape {list(stored)}, which does not fit the model's {list(shape)}"
            )
            return False
    return True


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
            at = column.source_start + begin - column.start
            axis = len(shape) - 1 - shard.axis if column.transpose else shard.axis
            part = files.read(column.source, axis, at, at + end - begin)
            parts.append(part.T if column.transpose else part)
    local = list(shard.shape)
    local[shard.axis] = sum(stop - start for start, stop in shard.ranges)
    if not parts:  # this rank holds padding only
        return np.zeros(local, np.float32)
    values = np.concatenate(parts, axis=shard.axis) if len(parts) > 1 else parts[0]
    if list(values.shape) != local:
        values = np.pad(values, [(0, wanted - have) for wanted, have in zip(local, values.shape, strict=True)])
    return np.ascontiguousarray(values)


def _check_tied_head(files: WeightFiles, family: str, config: Any, foreign: bool, findings: Findings) -> None:
    """Check that a tied head in the files equals the embedding, which PaddleNLP's network uses instead."""
    head = names.tied_head(family, config, foreign=foreign)
    prefix = FAMILIES[family].weights.hugging_face_base_prefix
    if foreign and prefix and names.HUGGING_FACE_TIED_HEAD in files and not _has_prefix(files, prefix):
        findings.wrong.append(
            f"{names.HUGGING_FACE_TIED_HEAD} occurs with names without {prefix!r}, which transformers also refuses: "
            f"add {prefix!r} to the other names, or remove the head"
        )
    if head is None or head not in files:
        return
    findings.used.add(head)
    candidates, _ = _candidates(files, family, names.EMBEDDINGS[family], 2, foreign)
    embedding = next((candidate for candidate in candidates if candidate in files), None)
    if embedding is None or files.shape(head) != files.shape(embedding):
        return
    rows = files.shape(head)[0]
    for start in range(0, rows, 8192):
        stop = min(start + 8192, rows)
        if not np.array_equal(files.read(head, 0, start, stop), files.read(embedding, 0, start, stop)):
            remedy = ""
            if FAMILIES[family].weights.tie == "configured":
                remedy = f"; set tie_word_embeddings to false to use {head}, or remove it from the files"
            findings.wrong.append(f"{head} differs from {embedding}, which this model uses as its head{remedy}")
            return


def _agree(findings: Findings, problem: str | None) -> Findings:
    """Return the union of all ranks' findings.

    Raises:
        UserError: If a rank could not read the files; with the problem of the first such rank.
    """
    import paddle.distributed as dist

    everyone: list[tuple[Findings, str | None]] = [(findings, problem)]
    if dist.is_initialized() and dist.get_world_size() > 1:
        everyone = []
        dist.all_gather_object(everyone, (findings, problem))
    for _, problem in everyone:
        if problem:
            raise UserError(problem)
    union = Findings()
    for one, _ in everyone:
        union.missing += [line for line in one.missing if line not in union.missing]
        union.wrong += [line for line in one.wrong if line not in union.wrong]
        union.not_finite += [line for line in one.not_finite if line not in union.not_finite]
        union.used |= one.used
    return union


def describe_not_finite(folder: Path, sources: list[str]) -> str:
    """Return the message about weights that are NaN or infinite."""
    return (
        f"{folder}: NaN or infinity in {counted(len(sources), 'weight')}: {_shorten(sources)}. Use a checkpoint from before the training "
        "failed, or fetch the folder again."
    )


def _describe(folder: Path, files: WeightFiles, findings: Findings) -> str:
    lines = []
    if findings.missing:
        lines.append(f"{folder}: {counted_are(len(findings.missing), 'weight')} missing: {_shorten(findings.missing)}")
    if findings.wrong:
        lines.append(
            f"{folder}: wrong shape or value of {counted(len(findings.wrong), 'weight')}: {_shorten(findings.wrong)}"
        )
    if findings.not_finite:
        lines.append(describe_not_finite(folder, findings.not_finite))
    if findings.missing or findings.wrong:
        unused = [name for name in files.names() if name not in findings.used]
        cause = why_adapter(files.names()) or why_wrapped(unused)
        cause = cause or why_empty({name: files.shape(name) for name in files.names()})
        lines.append(cause or "config.json and the weights belong to different models. Fetch the folder again.")
    return "\n".join(lines)


def _shorten(items: list[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return shown + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
