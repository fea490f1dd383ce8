"""Weights of the base that adapters contain besides LoRA: which of them the merged adapter has.

Such a weight replaces that of the base, so several of them cannot be added. They are kept if all adapters have the same
values. PEFT also saves the embedding and the head if LoRA is on them, although they were not trained: a weight that equals
that of the base is dropped where adapters differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.config.local_files.weights import has_weights
from paddle_llm.core.errors import UserError
from paddle_llm.families.shape import find_family
from paddle_llm.models.build import plain_configuration
from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.models.weights.findings import Findings
from paddle_llm.models.weights.load import read_shard
from paddle_llm.models.weights.locate import WeightLocator
from paddle_llm.models.weights.shards import Shard
from paddle_llm.peft.base import BaseModel
from paddle_llm.peft.merge_terms import Term


def common_retrained(terms: Sequence[Term], base: BaseModel) -> list[str]:
    """Return the weights of the base that the merged adapter has.

    Args:
        terms: The adapters.
        base: Their base; its weights are read only where the adapters differ.

    Raises:
        UserError: If an adapter trained a weight that the others have not, or have with other values.
    """
    first, names = terms[0], dict.fromkeys(name for term in terms for name in term.retrained)
    differing = {name: problem for name in names if (problem := _difference(name, terms))}
    if not differing:
        return list(names)
    if base.folder is not None and has_weights(base.folder):
        for name in list(differing):
            original = _weight_of(base.folder, name, next(term for term in terms if name in term.files))
            having = [term for term in terms if name in term.files]
            if original is not None and all(np.array_equal(term.read(name), original) for term in having):
                del differing[name]
                names.pop(name)
    if differing:
        name, problem = next(iter(differing.items()))
        raise UserError(
            f"{problem}. Such weights replace those of the base and cannot be added. Merge {first.folder} into its base (paddle-llm "
            f"export) and train the other on the result. If {name} was not trained, name the base with its weights: --base."
        )
    return list(names)


def _difference(name: str, terms: Sequence[Term]) -> str:
    """Return how adapters differ in a weight of the base; "" if all have the same values."""
    having = [term for term in terms if name in term.files]
    missing = next((term for term in terms if name not in term.files), None)
    if missing is not None:
        return f"{having[0].folder} contains {name} of the base, {missing.folder} does not"
    for term in having[1:]:
        if not np.array_equal(having[0].files.view(name), term.files.view(name)):
            return f"{having[0].folder} and {term.folder} contain {name} of the base with different values"
    return ""


def _weight_of(folder: Path, name: str, term: Term) -> np.ndarray | None:
    """Return a weight of the base in fp32; None if its files do not have it with this shape."""
    facts = read_model_facts(folder)
    family = find_family(facts)
    files, shape = WeightFiles(folder), term.files.shape(name)
    locator = WeightLocator(files, family.name, plain_configuration(folder, family, facts.raw), Findings())
    columns = locator.locate(name, shape, len(shape) - 1)
    if columns is None:
        return None
    whole = Shard(shape, len(shape) - 1, ((0, shape[-1]),))
    return read_shard(files, columns, whole, shape).astype(np.float32, copy=False)
