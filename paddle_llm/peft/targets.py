"""Which layers a method works on: names and patterns of the user's, looked up in the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import paddle.distributed as dist

from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.names import EMBEDDINGS, HEADS
from paddle_llm.peft.attachment import Attachment
from paddle_llm.peft.method import ALL_LINEAR, matches, pattern_matches
from paddle_llm.peft.methods.parallel_product import Cut, cut_of

_IN_A_BLOCK = re.compile(r"\.\d+\.")
# The linear layers that write to the residual stream, one of the attention and one of the feed-forward network.
_RESIDUAL = re.compile(r"(o_proj|out_proj|dense|down_proj|dense_4h_to_h|linear2)$")


def block_linears(attachment: Attachment) -> Iterator[tuple[str, Any, Cut]]:
    """(canonical name, layer, how it is cut) of every linear layer of the transformer blocks."""
    for path, layer in attachment.layers():
        cut = cut_of(layer, attachment.axis) if _IN_A_BLOCK.search(path) else None
        if cut is not None:
            yield path, layer, cut


def residual_linears(attachment: Attachment) -> Iterator[tuple[str, Any, Cut]]:
    """Those of `block_linears` that write to the residual stream."""
    return (found for found in block_linears(attachment) if _RESIDUAL.search(found[0]))


def target_layers(attachment: Attachment) -> list[tuple[str, Any, Cut]]:
    """What `Method.targets` name. Collective over all ranks.

    Raises:
        UserError: a pattern that matches no linear layer of the blocks, with the names that there are.
    """
    linears = list(block_linears(attachment))
    targets = attachment.method.targets
    if not targets or targets == (ALL_LINEAR,):
        return linears
    if ALL_LINEAR in targets:
        raise UserError(f"lora_target_modules: {ALL_LINEAR} stands for all of them; leave out the other names.")
    outside = [found for found in _outside_blocks(attachment) if _is_named(targets, found[0])]
    for pattern in targets:
        named = any(_is_named((pattern,), path) for path, *_ in outside)
        if not anywhere(named or any(pattern_matches(pattern, path) for path, *_ in linears)):
            raise UserError(f"lora_target_modules: {pattern!r} {_why_not(attachment, pattern)} {_offer(linears)}")
    if outside:
        _check_layout(attachment, outside[0][0])
    return [found for found in linears if matches(targets, found[0])] + outside


def _outside_blocks(attachment: Attachment) -> Iterator[tuple[str, Any, Cut]]:
    """The embedding and a head that is not tied to it."""
    from paddle import nn

    family = attachment.family.name
    for path, layer in attachment.layers():
        if f"{path}.weight" == EMBEDDINGS[family] and isinstance(layer, nn.Embedding):
            yield path, layer, Cut("embedding", False, attachment.axis)
        elif f"{path}.weight" == HEADS.get(family) and layer._parameters.get("weight") is not None:
            yield path, layer, Cut("plain", False, attachment.axis)


def _is_named(targets: tuple[str, ...], path: str) -> bool:
    """Whether a target is the end of a name; regular expressions name layers of the blocks only."""
    return any(path == target or path.endswith(f".{target}") for target in targets)


def _check_layout(attachment: Attachment, path: str) -> None:
    layout = attachment.layout
    if layout.tensor > 1 or layout.pipeline > 1 or (layout.sharding > 1 and layout.sharding_stage == 3):
        raise UserError(
            f"LoRA on {path} is not offered on this layout: {layout}. Use data parallelism or sharding stage 1 or 2, or leave "
            f"{path.rpartition('.')[2]} out of lora_target_modules."
        )


def matching_weights(attachment: Attachment, patterns: tuple[str, ...], field: str) -> list[str]:
    """Canonical names of the base's weights that patterns name, themselves or by a layer that holds them.

    In a pipeline a stage may hold none of them: `attach` asks all stages together.
    """
    return [name for name in attachment.base if any(_names_weight(pattern, name) for pattern in patterns)]


def _names_weight(pattern: str, name: str) -> bool:
    parts = name.split(".")
    return any(pattern_matches(pattern, ".".join(parts[:end])) for end in range(1, len(parts) + 1))


def _why_not(attachment: Attachment, pattern: str) -> str:
    if any(pattern_matches(pattern, path) for path, _ in attachment.layers()):
        return "is not a linear layer of a transformer block (train it whole by --modules_to_save)."
    return "matches no layer."


def _offer(linears: list[tuple[str, Any, Cut]]) -> str:
    return f"There are: {', '.join(sorted({path.rpartition('.')[2] for path, *_ in linears}))}; or {ALL_LINEAR}."


def anywhere(found: bool) -> bool:
    """Whether it is so on any rank: a pipeline stage sees its own layers only."""
    if dist.get_world_size() == 1:
        return found
    answers: list[bool] = []
    dist.all_gather_object(answers, found)
    return any(answers)
