"""Merges several LoRA adapters of one base into one adapter: the weighted sum of what they add to the weights.

`merge.py` adds one adapter to the weights of its base; this module adds adapters to each other and needs no weights of
the base. What a sum cannot express is refused: DoRA, whose magnitudes rescale the base, methods that do not add to the
weights, adapters of different bases, and weights of the base that were trained differently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.peft.adapter_files import FORMAT, write_adapter
from paddle_llm.peft.base import BaseModel
from paddle_llm.peft.hugging_face.config import layer_exceptions, layer_patterns
from paddle_llm.peft.hugging_face.convert import LoraAdapter, Progress, check_shape, copy_other_files, write_peft
from paddle_llm.peft.merge_products import Product, concatenate, narrow, truncate
from paddle_llm.peft.merge_retrained import common_retrained
from paddle_llm.peft.merge_terms import (
    Addend,
    Term,
    choose_companions,
    open_term,
    refuse_different_bases,
    refuse_fused_and_separate,
)
from paddle_llm.peft.method import Method


@dataclass(frozen=True)
class MergedAdapter:
    """The result, in memory.

    Attributes:
        method: LoRA with scaling 1 in every layer.
        tensors: Tensors by canonical name; bfloat16 as bits in uint16.
        dtype: Type of LoRA's matrices.
        errors: Layer -> relative error of its product, for layers whose rank was reduced.
    """

    method: Method
    tensors: dict[str, np.ndarray]
    dtype: str
    errors: dict[str, float]

    @property
    def layers(self) -> list[str]:
        """Canonical names of the layers with LoRA."""
        return [name.removesuffix(".lora_A") for name in self.tensors if name.endswith(".lora_A")]

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self.tensors)

    def view(self, name: str) -> np.ndarray:
        """Return a tensor."""
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors


def merge_adapters(
    addends: Sequence[Addend],
    out: Path,
    *,
    to_peft: bool,
    rank: int | None = None,
    show: Progress = iter,
    allow_pickle: bool = False,
) -> MergedAdapter:
    """Write the weighted sum of adapters as one LoRA adapter.

    Memory: the size of all adapters.

    Args:
        addends: The adapters.
        out: Folder to write.
        to_peft: Whether to write PEFT's format.
        rank: Largest rank of the result; None: the sum of the ranks, which is exact.
        show: Wrapper of an iterable, for a progress bar.
        allow_pickle: Whether PEFT's adapter_model.bin may be read.

    Returns:
        The adapter that was written.

    Raises:
        UserError: If an adapter is unreadable, or the sum cannot be expressed.
    """
    refuse_different_bases(addends)
    terms = [open_term(addend, allow_pickle=allow_pickle) for addend in addends]
    _refuse_different_shapes(terms)
    refuse_fused_and_separate(terms)
    folder, base, shape = terms[0].folder, addends[0].base, terms[0].shape
    if base.is_requested:
        check_shape(folder, base, shape)
    merged = add_terms(terms, base, rank=rank, show=show)
    extra = partial(copy_other_files, choose_companions([addend.folder for addend in addends]))
    if to_peft:
        write_peft(out, LoraAdapter(folder, merged.method, shape, merged), base, extra=extra)
    else:
        config = {"format": FORMAT, "method": merged.method.as_dict(), "model": shape, "base": base.name}
        write_adapter(out, config, merged.tensors, extra=extra)
    return merged


def add_terms(
    terms: Sequence[Term], base: BaseModel, *, rank: int | None = None, show: Progress = iter
) -> MergedAdapter:
    """Return the sum of opened adapters as one adapter. Arguments are as in `merge_adapters`."""
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    errors: dict[str, float] = {}
    for layer in show(list(dict.fromkeys(layer for term in terms for layer in term.layers))):
        products = [term.product(layer) for term in terms if layer in term.layers]
        _check_sizes(layer, products, [term for term in terms if layer in term.layers])
        a, b = concatenate(products)
        if rank is not None and a.shape[1] > rank:
            a, b, errors[layer] = truncate(a, b, rank)
        if not np.isfinite(a).all():
            raise UserError(f"{layer}: the weights {_list_weights(terms)} make values infinite. Use smaller weights.")
        pairs[layer] = a, b
    retrained = common_retrained(terms, base)
    tensors, dtype = _stored(terms, pairs, exact=not errors)
    tensors |= {name: np.ascontiguousarray(terms[0].files.view(name)) for name in retrained}
    return MergedAdapter(_method(terms, pairs, retrained), tensors, dtype, errors)


def _refuse_different_shapes(terms: Sequence[Term]) -> None:
    first = terms[0]
    for term in terms[1:]:
        differing = ", ".join(
            f"{key} {first.shape.get(key)} and {term.shape.get(key)}"
            for key in sorted(first.shape.keys() | term.shape.keys())
            if first.shape.get(key) != term.shape.get(key)
        )
        if differing:
            raise UserError(
                f"{first.folder} and {term.folder} were trained on different bases: {differing}. Merge adapters of one base."
            )


def _check_sizes(layer: str, products: Sequence[Product], terms: Sequence[Term]) -> None:
    sizes = [(product.a.shape[0], product.b.shape[1]) for product in products]
    for size, term in zip(sizes, terms, strict=True):
        if size != sizes[0]:
            raise UserError(
                f"{layer} is {sizes[0][0]} x {sizes[0][1]} for {terms[0].folder}, but {size[0]} x {size[1]} for {term.folder}. "
                "Merge adapters of one base."
            )


def _stored(
    terms: Sequence[Term], pairs: dict[str, tuple[np.ndarray, np.ndarray]], *, exact: bool
) -> tuple[dict[str, np.ndarray], str]:
    """Return the tensors by name in the type of the adapters if that changes no value, else in fp32; and the type."""
    wide = {
        f"{layer}.{part}": values
        for layer, pair in pairs.items()
        for part, values in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    dtypes = {term.files.dtype(name) for term in terms for name in term.files.names() if name not in term.retrained}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    if dtype not in ("bfloat16", "float16"):
        return wide, "float32"
    narrowed = {name: narrow(values, dtype) for name, values in wide.items()} if exact else {}
    kept = {name: values for name, values in narrowed.items() if values is not None}
    if len(kept) == len(wide):
        return kept, dtype
    say(f"the adapters are stored in {dtype}; the result is stored in float32, because {dtype} would round it")
    return wide, "float32"


def _method(terms: Sequence[Term], pairs: dict[str, tuple[np.ndarray, np.ndarray]], retrained: Sequence[str]) -> Method:
    """Return the settings of the result: scaling 1 in every layer, that is alpha = rank."""
    first = terms[0]
    ranks = {layer: a.shape[1] for layer, (a, _) in pairs.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    same_layers = all(set(term.layers) == set(first.layers) for term in terms)
    return Method(
        "lora",
        rank=rank,
        alpha=float(rank),
        dropout=_common_setting(terms, "dropout", 0.0),
        targets=first.method.targets if same_layers else layer_patterns(list(ranks), first.shape),
        ranks=layer_exceptions(ranks, rank, first.shape),
        alphas=layer_exceptions({layer: float(value) for layer, value in ranks.items()}, float(rank), first.shape),
        lora_plus_scale=_common_setting(terms, "lora_plus_scale", 1.0),
        modules_to_save=first.method.modules_to_save if set(retrained) == set(first.retrained) else tuple(retrained),
    )


def _common_setting(terms: Sequence[Term], name: str, default: Any) -> Any:
    """Return a setting that affects only further training: the common value, or a default, which is reported."""
    values = [getattr(term.method, name) for term in terms]
    if len(set(values)) == 1:
        return values[0]
    say(f"the adapters were trained with {name} {', '.join(map(str, values))}; the result has {default}")
    return default


def _list_weights(terms: Sequence[Term]) -> str:
    return ", ".join(f"{term.weight:g}" for term in terms)
