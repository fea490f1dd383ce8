"""The contract of an export's weight files: their names, what is in them, of which types and shapes. Headers are read,
never values.

Whether a matrix lies as torch has it, [out, in], its shape tells wherever the two sides differ. A square one lies as
the other matrices do, and as the file's own metadata say: "format": "pt" (Paddle's writers say "np" or "pd"). One that
alone was transposed only the comparison of logits can find.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_llm.core.artifacts import SAFETENSORS, SAFETENSORS_INDEX
from paddle_llm.core.errors import UserError
from paddle_llm.export.targets.shard_writer import CODES
from paddle_llm.families import FAMILIES
from paddle_llm.models.weights.files import read_header
from paddle_llm.models.weights.names import hugging_face, tied_head

_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_TYPES = {code: dtype for dtype, code in CODES.items()}
_SHOWN = 3
AGAIN = "export it again with paddle-llm export"


@dataclass(frozen=True)
class Stored:
    """What a header says of a tensor; `dtype` as numpy and torch call it, or as the file does where it is no weight's
    type."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def lint_files(folder: Path, target: str) -> tuple[dict[str, Stored], list[str]]:
    """Every stored tensor by name, and what is wrong with the files that hold them."""
    problems = _leftovers(folder, target)
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    index = folder / SAFETENSORS_INDEX
    if not files:
        return {}, [*problems, f"no weights: neither {SAFETENSORS} nor {SAFETENSORS_INDEX} with its shards; {AGAIN}"]
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
                f"{name} and {stored[twice[0]].file} both hold {_few(twice)}: remove the file that is a leftover"
            )
        if written_by != "pt":
            problems.append(
                f'{name}: its metadata say "format": {written_by!r} and not "pt": square matrices may lie as Paddle keeps them, [in, out]; '
                + AGAIN
            )
        stored |= found
    if SAFETENSORS in files and index.is_file():
        problems.append(f"{SAFETENSORS} stands beside {SAFETENSORS_INDEX}, and wins: remove the one that is a leftover")
    elif SAFETENSORS not in files:
        problems += _shard_problems(files, index, stored)
    elif len(files) > 1:
        problems.append(
            f"{SAFETENSORS} stands beside {_few([f for f in files if f != SAFETENSORS])}, which nothing reads: remove them"
        )
    return stored, problems


def _leftovers(folder: Path, target: str) -> list[str]:
    left = sorted(file.name for file in folder.glob("*.pdparams"))
    wins = (
        "FastDeploy reads it instead of the safetensors" if target == "fastdeploy" else "PaddleNLP may read it instead"
    )
    return [f"{_few(left)} is left over: {wins}; remove it"] if left else []


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
        yield f"{_few(wrong)}: shards must be named model-0000i-of-0000N.safetensors, or FastDeploy does not find them; {AGAIN}"
    matches = [match for match in map(_SHARD.fullmatch, files) if match]
    counts = {int(match[2]) for match in matches}
    if len(counts) > 1:
        yield f"the shards are of {' and of '.join(map(str, sorted(counts)))} files: remove those of another export"
    for count in counts:
        there = {int(match[1]) for match in matches if int(match[2]) == count}
        absent = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1) if i not in there]
        if absent:
            yield f"{_few(absent)} of {count} shards is missing; {AGAIN}, or copy it again"
    if not index.is_file():
        yield f"{SAFETENSORS_INDEX} is missing, without which no shard is read; {AGAIN}"
        return
    try:
        read = json.loads(index.read_text(encoding="utf-8"))
        where, total = dict(read["weight_map"]), read["metadata"]["total_size"]
    except (ValueError, KeyError, TypeError) as error:
        yield f"{SAFETENSORS_INDEX} cannot be read ({error!r}); {AGAIN}"
        return
    yield from _index_problems(where, total, stored)


def _index_problems(where: dict[str, str], total: Any, stored: dict[str, Stored]) -> Iterator[str]:
    for name, file in sorted(where.items()):
        if name not in stored:
            yield f"{SAFETENSORS_INDEX} says that {name} is in {file}, which does not hold it; {AGAIN}"
        elif stored[name].file != file:
            yield f"{SAFETENSORS_INDEX} says that {name} is in {file}; it is in {stored[name].file}; {AGAIN}"
    unlisted = sorted(stored.keys() - where.keys())
    if unlisted:
        yield f"{SAFETENSORS_INDEX} lacks {_few(unlisted)}, which a shard holds and nothing will read; {AGAIN}"
    size = sum(one.nbytes for one in stored.values())
    if total != size:
        yield f"{SAFETENSORS_INDEX} gives total_size {total}; the tensors have {size} bytes; {AGAIN}"


def lint_tensors(stored: dict[str, Stored], family: str, config: Any, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """What is missing, unknown or of the wrong shape.

    Args:
        config: PaddleNLP's, of the export's config.json.
        shapes: canonical name -> shape ([in, out]) of every weight that the network has.
    """
    expected, needs_turn = {}, set()
    for name, shape in shapes.items():
        there = hugging_face(family, name, len(shape))
        expected[there.name] = tuple(shape[::-1]) if there.transpose else tuple(shape)
        if there.transpose:
            needs_turn.add(there.name)
    missing = sorted(expected.keys() - stored.keys())
    unknown = sorted(stored.keys() - expected.keys())
    problems = list(_name_problems(missing, unknown, family, config))
    found = {name: one for name, one in stored.items() if name in expected and one.shape != expected[name]}
    turned = [name for name, one in found.items() if name in needs_turn and one.shape == expected[name][::-1]]
    others = [name for name in found if name not in turned]
    if turned:
        problems.append(
            f"{_few(turned)}: stored as [in, out], as Paddle keeps it, where [out, in] is read; it would load and answer garbage where the "
            f"matrix is square: transpose every matrix, or {AGAIN}"
        )
    problems += [
        f"{name} has the shape {list(found[name].shape)}; by config.json it must be {list(expected[name])}: config.json or the weights "
        f"are of another model; {AGAIN}"
        for name in sorted(others)[:_SHOWN]
    ]
    return problems


def _name_problems(missing: list[str], unknown: list[str], family: str, config: Any) -> Iterator[str]:
    head = tied_head(family, config, foreign=True)
    if head in unknown:
        unknown = [name for name in unknown if name != head]
        yield (
            f"{head} is stored although the head is tied to the embedding (tie_word_embeddings): one of the two is not read; remove it, or "
            "set tie_word_embeddings to false where they differ"
        )
    sign = FAMILIES[family].weights.hugging_face_sign
    prefixed = [name for name in unknown if name.startswith(f"{family}.")]
    if prefixed and sign != f"{family}.":
        yield (
            f"{_few(prefixed)}: PaddleNLP's name; Hugging Face's begins with {sign or 'transformer.'!r}. Unknown names are skipped without a "
            f"word and the weights stay random: {AGAIN}"
        )
    others = [name for name in unknown if name not in prefixed]
    if others:
        yield f"{_few(others)}: no weight of {family} is called so; it is skipped without a word: remove it, or correct the name"
    if missing:
        yield f"{_few(missing)} missing: the network would run with random numbers there; {AGAIN}"


def lint_types(stored: dict[str, Stored], stated: str, target: str) -> list[str]:
    """Whether weights are of the type that config.json states: all of them for FastDeploy, most bytes for Hugging
    Face."""
    strange = sorted({one.dtype for one in stored.values()} - set(_TYPES.values()))
    if strange:
        return [f"weights are stored as {', '.join(strange)}; only float32, bfloat16 and float16 are read: {AGAIN}"]
    other = sorted(name for name, one in stored.items() if one.dtype != stated)
    most: Callable[[str], int] = lambda dtype: sum(one.nbytes for one in stored.values() if one.dtype == dtype)  # noqa: E731
    usual = max(sorted({one.dtype for one in stored.values()}), key=most, default=stated)
    if not other or (target == "hf" and usual == stated):
        return []
    return [
        f"config.json says {stated}, but {_few(other)} is stored as {stored[other[0]].dtype}: set torch_dtype to what is stored, or export "
        f"again with --dtype {stated}"
    ]


def _few(names: list[str]) -> str:
    """The first of them, and how many there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
