"""Attaches a fine-tuning method to a network, and lists the tensors of the result."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import paddle
import paddle.distributed as dist

from paddle_llm.config.layout import Layout
from paddle_llm.config.methods import method_problems
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES, Family
from paddle_llm.models.weights.full_weights import family_name
from paddle_llm.models.weights.names import canonical_parameters
from paddle_llm.models.weights.shards import Shard, shard_of
from paddle_llm.parallel.mesh import current_mesh
from paddle_llm.peft.attachment import Attachment, active_attachment, register
from paddle_llm.peft.merge import unmerge
from paddle_llm.peft.method import Method
from paddle_llm.peft.methods import bottleneck, lora, prefix, prompt
from paddle_llm.peft.targets import matching_weights, on_any_rank

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel

_INSTALL = {
    "lora": lora.install,
    "adalora": lora.install,
    "prefix": prefix.install,
    "adapter": bottleneck.install,
    "prompt": prompt.install,
}
_USUAL_SHARE = (0.005, 0.08)  # share of bottleneck adapters in all parameters


def attach(
    model: LanguageModel,
    method: Method,
    layout: Layout,
    *,
    seed: int = 0,
    name: str = "default",
    quiet: bool = False,
) -> LanguageModel:
    """Attach a method to a network and freeze everything that it does not train. Collective over all ranks.

    Call it after the weights are loaded and before the trainer is created. Initial values depend only on the seed and
    the names of the tensors.

    Args:
        model: A PaddleNLP network.
        method: The method and its settings.
        layout: Layout of the ranks.
        seed: Seed of the initial values.
        name: Name of the adapter, for `set_active`.
        quiet: Whether to suppress the report of the share of trained parameters.

    Returns:
        The given network.

    Raises:
        UserError: If the method does not support the layout or family, or a pattern matches nothing.
    """
    family = family_of(model)
    problems = list(
        method_problems(
            method.name,
            layout,
            family.name,
            prefix_projection=method.prefix_projection,
            dora=method.dora,
        )
    )
    if problems:
        raise UserError("\n".join(problems))
    active = active_attachment(model)
    if active is not None:
        unmerge(model)
        active.switch_off()
    if method.name == "full":
        return model
    attachment = Attachment(model, method, layout, family, seed)
    if method.name in _INSTALL:
        _INSTALL[method.name](attachment)
    attachment.retrain(_parts_of_base(attachment))
    attachment.freeze_base()
    register(model, name, attachment)
    if not quiet:
        _report_share(model, method, layout)
    return model


def _parts_of_base(attachment: Attachment) -> list[str]:
    """Return the canonical names of the base's weights that are trained directly."""
    method, names = attachment.method, []
    for field, patterns in (("modules_to_save", method.modules_to_save), ("trainable_modules", method.named_parts)):
        for pattern in patterns:
            found = matching_weights(attachment, (pattern,), field)
            if not on_any_rank(bool(found)):
                raise UserError(f"{field}: {pattern!r} matches no part of the network. {_list_parts(attachment)}")
            names += found
    if method.last_layers:
        config = attachment.model.config
        count = getattr(config, "n_layer", None) or config.num_hidden_layers
        if not 0 < method.last_layers <= count:
            raise UserError(
                f"freeze_layers={method.last_layers} is out of range: the model has {count} layers. Use 1 to {count}."
            )
        numbers = ((name, re.search(r"\.(\d+)\.", name)) for name in attachment.base)
        names += [name for name, number in numbers if number and int(number[1]) >= count - method.last_layers]
    if method.name == "freeze" and not on_any_rank(bool(names)):
        raise UserError(
            "Nothing is left to train. Set --freeze_layers N to train the last N layers, or --trainable_modules."
        )
    return list(dict.fromkeys(names))


def _list_parts(attachment: Attachment) -> str:
    parts = {re.sub(r"\.\d+\.", ".N.", name).removesuffix(".weight").removesuffix(".bias") for name in attachment.base}
    return f"Use one of: {', '.join(sorted(parts))}."


def trainable_tensors(model: LanguageModel) -> Iterator[tuple[str, paddle.Tensor, Shard]]:
    """Yield (canonical name, parameter, shard that this rank has) of each trained tensor."""
    return ((name, parameter, shard) for name, parameter, shard in all_tensors(model) if not parameter.stop_gradient)


def all_tensors(model: LanguageModel) -> Iterator[tuple[str, paddle.Tensor, Shard]]:
    """Yield (canonical name, parameter, shard that this rank has) of each weight of the base and each added tensor."""
    family, config = family_name(model), model.config
    degree, rank = max(config.tensor_parallel_degree, 1), config.tensor_parallel_rank
    for name, parameter in canonical_parameters(model, family):
        split = degree > 1 and bool(getattr(parameter, "is_distributed", False))
        yield name, parameter, shard_of(family, name, parameter.shape, split, config, degree, rank)
    attachment = active_attachment(model)
    if attachment is not None:
        yield from ((tensor.name, tensor.parameter, tensor.shard) for tensor in attachment.added)


def trainable_share(model: LanguageModel, layout: Layout) -> tuple[int, int]:
    """Return the trained and all elements of the network, each tensor counted once. Collective over all ranks."""
    mine = {name: (_elements(shard), not parameter.stop_gradient) for name, parameter, shard in all_tensors(model)}
    if current_mesh(layout).pipeline.size > 1:
        tables: list[dict[str, tuple[int, bool]]] = []
        dist.all_gather_object(tables, mine)
        mine = {name: value for table in tables for name, value in table.items()}
    return sum(size for size, trained in mine.values() if trained), sum(size for size, _ in mine.values())


def _elements(shard: Shard) -> int:
    size = 1
    for extent in shard.shape:
        size *= extent
    return size


def _report_share(model: LanguageModel, method: Method, layout: Layout) -> None:
    trained, total = trainable_share(model, layout)
    share = trained / total
    say(f"{method.name}: {trained:,} of {total:,} parameters are trained ({share:.2%})")
    low, high = _USUAL_SHARE
    if method.name == "adapter" and not low <= share <= high:
        say(
            f"--adapter_size {method.adapter_size} adds {share:.2%} of the network's parameters; usual are {low:.1%} to {high:.0%}"
        )


def family_of(model: LanguageModel) -> Family:
    """Return the family of a PaddleNLP network."""
    return FAMILIES[family_name(model)]
