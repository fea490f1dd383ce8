"""Checks the weight files of an export: their names, and names, types and shapes of their tensors.

Only headers are read.

The shape of a matrix shows whether it has torch's layout [out, in], unless it is square. Square matrices have the
layout of the others and of the file's metadata: "format": "pt" (Paddle's writers use "np" or "pd"). A single
transposed square matrix is found only by comparing logits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_llm.core.artifacts import SAFETENSORS, SAFETENSORS_INDEX
from paddle_llm.core.errors import UserError
from paddle_llm.export.targets.shard_writer import CODES
from paddle_llm.families import FAMILIES
from paddle_llm.models.weights.names import hugging_face, tied_head
from paddle_llm.models.weights.safetensors_header import read_header

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_TYPES = {code: dtype for dtype, code in CODES.items()}
_SHOWN = 3
AGAIN = "Export again with paddle-llm export."


@dataclass(frozen=True)
class Stored:
    """A tensor according to a header.

    Attributes:
        file: Name of the file.
        dtype: Name of the type in numpy and torch, or in the file if it is not a type of weights.
        shape: Shape.
        nbytes: Size in bytes.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def lint_files(folder: Path, target: str) -> tuple[dict[str, Stored], list[str]]:
    """Return every stored tensor by name, and a message for each problem of the files."""
    problems = _leftovers(folder, target)
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    index = folder / SAFETENSORS_INDEX
    if not files:
        return {}, [
            *problems,
            f"no weights: neither {SAFETENSORS} nor {SAFETENSORS_INDEX} with its shards exists. {AGAIN}",
        ]
    stored: dict[str, Stored] = {}
    for name in files:
        try:
            found, written_by = _header(folder / name)
        except UserError as error:
            problems.append(str(error))
            continue
        twice = sorted(stored.keys() & found.keys())
        if twice:
            problems.append(
                f"{name} and {stored[twice[0]].file} both contain {_few(twice)}. Remove the file that belongs to another export."
            )
        if written_by != "pt":
            problems.append(
                f'{name}: its metadata have "format": {written_by!r} instead of "pt", so square matrices may have Paddle\'s layout '
                f"[in, out]. {AGAIN}"
            )
        stored |= found
    if SAFETENSORS in files and index.is_file():
        problems.append(
            f"both {SAFETENSORS} and {SAFETENSORS_INDEX} exist, and the former takes precedence. Remove the one that belongs to another export."
        )
    elif SAFETENSORS not in files:
        problems += _shard_problems(files, index, stored)
    elif len(files) > 1:
        problems.append(
            f"{_few([f for f in files if f != SAFETENSORS])} exist besides {SAFETENSORS} and are never read. Remove them."
        )
    return stored, problems


def _leftovers(folder: Path, target: str) -> list[str]:
    left = sorted(file.name for file in folder.glob("*.pdparams"))
    effect = (
        "FastDeploy reads it instead of the safetensors" if target == "fastdeploy" else "PaddleNLP may read it instead"
    )
    return [f"{_few(left)} does not belong to the export: {effect}. Remove it."] if left else []


def _header(file: Path) -> tuple[dict[str, Stored], str | None]:
    header, _ = read_header(file)
    written_by = (header.pop("__metadata__", None) or {}).get("format")
    found = {}
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        dtype = _TYPES.get(tensor["dtype"], tensor["dtype"])
        found[name] = Stored(file.name, dtype, tuple(tensor["shape"]), end - begin)
    return found, written_by


def _shard_problems(files: list[str], index: Path, stored: dict[str, Stored]) -> Iterator[str]:
    wrong = [name for name in files if not _SHARD.fullmatch(name)]
    if wrong:
        yield f"{_few(wrong)}: FastDeploy finds only shards named model-0000i-of-0000N.safetensors. {AGAIN}"
    matches = [match for match in map(_SHARD.fullmatch, files) if match]
    counts = {int(match[2]) for match in matches}
    if len(counts) > 1:
        yield f"the shards belong to exports of {' and '.join(map(str, sorted(counts)))} files. Remove those of another export."
    for count in counts:
        there = {int(match[1]) for match in matches if int(match[2]) == count}
        absent = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1) if i not in there]
        if absent:
            yield f"missing shards: {_few(absent)} ({len(absent)} of {count}). Copy them again, or export again."
    if not index.is_file():
        yield f"{SAFETENSORS_INDEX} is missing, without which no shard is read. {AGAIN}"
        return
    try:
        read = json.loads(index.read_text(encoding="utf-8"))
        where, total = dict(read["weight_map"]), read["metadata"]["total_size"]
    except (ValueError, KeyError, TypeError) as error:
        yield f"{SAFETENSORS_INDEX} cannot be read: {error!r}. {AGAIN}"
        return
    yield from _index_problems(where, total, stored)


def _index_problems(where: dict[str, str], total: object, stored: dict[str, Stored]) -> Iterator[str]:
    for name, file in sorted(where.items()):
        if name not in stored:
            yield f"{SAFETENSORS_INDEX} lists {name} in {file}, which does not contain it. {AGAIN}"
        elif stored[name].file != file:
            yield f"{SAFETENSORS_INDEX} lists {name} in {file}, but it is in {stored[name].file}. {AGAIN}"
    unlisted = sorted(stored.keys() - where.keys())
    if unlisted:
        yield f"{SAFETENSORS_INDEX} does not list {_few(unlisted)} of a shard, so it is never read. {AGAIN}"
    size = sum(one.nbytes for one in stored.values())
    if total != size:
        yield f"{SAFETENSORS_INDEX} has total_size {total}, but the tensors have {size} bytes. {AGAIN}"


def lint_tensors(
    stored: dict[str, Stored], family: str, config: PretrainedConfig, shapes: dict[str, tuple[int, ...]]
) -> list[str]:
    """Find missing and unknown tensors, and those of a wrong shape.

    Args:
        stored: Stored tensors by name.
        family: Name of the model family.
        config: PaddleNLP's configuration, from the export's config.json.
        shapes: Canonical name -> shape ([in, out]) of every weight of the network.
    """
    expected, transposed = {}, set()
    for name, shape in shapes.items():
        there = hugging_face(family, name, len(shape))
        expected[there.name] = tuple(shape[::-1]) if there.transpose else tuple(shape)
        if there.transpose:
            transposed.add(there.name)
    missing = sorted(expected.keys() - stored.keys())
    unknown = sorted(stored.keys() - expected.keys())
    problems = list(_name_problems(missing, unknown, family, config))
    found = {name: one for name, one in stored.items() if name in expected and one.shape != expected[name]}
    untransposed = [name for name, one in found.items() if name in transposed and one.shape == expected[name][::-1]]
    others = [name for name in found if name not in untransposed]
    if untransposed:
        problems.append(
            f"{_few(untransposed)}: stored in Paddle's layout [in, out] instead of [out, in]. A square matrix would load and generate "
            f"garbage. {AGAIN}"
        )
    problems += [
        f"{name} has the shape {list(found[name].shape)}, but config.json requires {list(expected[name])}: one of them belongs to "
        f"another model. {AGAIN}"
        for name in sorted(others)[:_SHOWN]
    ]
    return problems


def _name_problems(missing: list[str], unknown: list[str], family: str, config: PretrainedConfig) -> Iterator[str]:
    head = tied_head(family, config, is_hugging_face=True)
    if head in unknown:
        unknown = [name for name in unknown if name != head]
        yield (
            f"{head} is stored although the head is tied to the embedding (tie_word_embeddings), so one of them is not read. Remove "
            "it, or set tie_word_embeddings to false if they differ."
        )
    sign = FAMILIES[family].weights.hugging_face_sign
    prefixed = [name for name in unknown if name.startswith(f"{family}.")]
    if prefixed and sign != f"{family}.":
        yield (
            f"{_few(prefixed)}: a PaddleNLP name; Hugging Face's begins with {sign or 'transformer.'!r}. Unknown names are silently "
            f"skipped and the weights stay random. {AGAIN}"
        )
    others = [name for name in unknown if name not in prefixed]
    if others:
        yield f"{_few(others)}: not a weight of {family}, and silently skipped. Remove it, or correct the name."
    if missing:
        yield f"{_few(missing)} missing: the network would use random values instead. {AGAIN}"


def lint_types(stored: dict[str, Stored], stated: str, target: str) -> list[str]:
    """Check that weights have the type in config.json: all of them for FastDeploy, most bytes for Hugging Face."""
    strange = sorted({one.dtype for one in stored.values()} - set(_TYPES.values()))
    if strange:
        return [f"weights are stored as {', '.join(strange)}, but only float32, bfloat16 and float16 are read. {AGAIN}"]
    other = sorted(name for name, one in stored.items() if one.dtype != stated)
    most: Callable[[str], int] = lambda dtype: sum(one.nbytes for one in stored.values() if one.dtype == dtype)  # noqa: E731
    usual = max(sorted({one.dtype for one in stored.values()}), key=most, default=stated)
    if not other or (target == "hf" and usual == stated):
        return []
    return [
        f"config.json has {stated}, but {_few(other)} is stored as {stored[other[0]].dtype}. Set torch_dtype to the stored type, or "
        f"export again with --dtype {stated}."
    ]


def _few(names: list[str]) -> str:
    """Join the first names, and count the rest."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
