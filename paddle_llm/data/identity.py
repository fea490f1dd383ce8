"""Identity of a training's data: named digests of its whole content, so that a resumed training can name what changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

FIRST_SAMPLES = "first samples"
_MOST_BLOCKS = 64


@dataclass(frozen=True)
class DataIdentity:
    """Identity of a data set.

    Attributes:
        parts: Parts by name, as JSON. Two data sets are the same if all parts are equal.
        origin: Function of the number of a sample, or of a corpus, that returns where it comes from; for messages only.
    """

    parts: dict[str, Any]
    origin: Callable[[int], str] = field(default=str, compare=False)


def digest_of(*arrays: np.ndarray) -> str:
    """Return a digest of the content of arrays."""
    found = xxhash.xxh3_128()
    for array in arrays:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def block_size(samples: int) -> int:
    """Return the number of samples of a block: a power of two, so that there are at most 64 blocks."""
    if samples <= _MOST_BLOCKS:
        return 1
    return 1 << ((samples - 1).bit_length() - (_MOST_BLOCKS - 1).bit_length())


def differences(saved: dict[str, Any], now: DataIdentity) -> list[str]:
    """Return what differs between the data of a checkpoint and that of a job, for a message.

    Args:
        saved: Parts of the identity in the checkpoint. A part that a later version added is not compared.
        now: Identity of the data of the job.
    """
    parts = now.parts
    changed = {name for name, was in saved.items() if was != parts.get(name)}
    first = zip(saved.get(FIRST_SAMPLES, []), parts.get(FIRST_SAMPLES, []), strict=False)
    if all(was == new for was, new in first):  # a longer training may have more of them
        changed.discard(FIRST_SAMPLES)
    found: list[str] = []
    if "tokenizer" in changed:
        found.append(f"the tokenizer ({saved['tokenizer']} -> {parts.get('tokenizer')})")
    if "samples" in changed:
        found.append(f"{saved['samples']} samples -> {parts.get('samples')}")
    if "corpora" in changed:
        found += _changed_corpora(saved["corpora"], parts.get("corpora", []), now.origin)
    tensors = [name for name in ("token ids", "labels") if name in changed]
    if tensors:
        found.append(" and ".join(tensors) + _where(saved, now))
    named = {"tokenizer", "samples", "corpora", "token ids", "labels"}
    if "blocks" in changed and tensors or "samples" in changed:
        named |= {"blocks", "packed rows"}  # they follow from the samples
    return [*found, *sorted(changed - named)]


def _where(saved: dict[str, Any], now: DataIdentity) -> str:
    """Return the first block of samples that differs, as text."""
    samples, was, new = now.parts.get("samples", 0), saved.get("blocks", []), now.parts.get("blocks", [])
    if samples != saved.get("samples"):
        return ""
    size = block_size(samples)
    first = next((i for i, pair in enumerate(zip(was, new, strict=False)) if pair[0] != pair[1]), 0) * size
    last = min(first + size, samples) - 1
    others = sum(one != other for one, other in zip(was, new, strict=False)) > 1
    which = f"sample {first}" if first == last else f"samples {first} to {last}"
    return f" of {which} ({now.origin(first)}){' and others' if others else ''}"


def _changed_corpora(
    was: list[dict[str, Any]], new: list[dict[str, Any]], origin: Callable[[int], str]
) -> Iterator[str]:
    if len(was) != len(new):
        yield f"{len(was)} corpora -> {len(new)}"
        return
    for number, (one, other) in enumerate(zip(was, new, strict=True)):
        changed = [name for name, value in one.items() if value != other.get(name)]
        if changed:
            yield f"{' and '.join(changed)} of the corpus {origin(number)}"
