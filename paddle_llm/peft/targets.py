"""Finds the layers and weights that a method works on, from the user's names and patterns."""

from __future__ import annotations

import re
from collections.abc import Iterator

import paddle.distributed as dist
from paddle import nn

from paddle_llm.config.methods import any_pattern_matches, pattern_matches
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.names import EMBEDDINGS, HEADS
from paddle_llm.peft.attachment import Attachment
from paddle_llm.peft.method import ALL_LINEAR
from paddle_llm.peft.methods.parallel_product import LayerSplit, layer_split

_IN_A_BLOCK = re.compile(r"\.\d+\.")
# The linear layers that write to the residual stream: one in attention and one in the feed-forward network.
_RESIDUAL = re.compile(r"(o_proj|out_proj|dense|down_proj|dense_4h_to_h|linear2)$")


def block_linears(attachment: Attachment) -> Iterator[tuple[str, nn.Layer, LayerSplit]]:
    """Yield (canonical name, layer, its split) of every linear layer of the transformer blocks."""
    for path, layer in attachment.layers():
        split = layer_split(layer, attachment.axis) if _IN_A_BLOCK.search(path) else None
        if split is not None:
            yield path, layer, split


def residual_linears(attachment: Attachment) -> Iterator[tuple[str, nn.Layer, LayerSplit]]:
    """Yield those of `block_linears` that write to the residual stream."""
    return (found for found in block_linears(attachment) if _RESIDUAL.search(found[0]))


def target_layers(attachment: Attachment) -> list[tuple[str, nn.Layer, LayerSplit]]:
    """Return the layers that `Method.targets` matches. Collective over all ranks.

    Raises:
        UserError: If a pattern matches no linear layer of the blocks.
    """
    linears = list(block_linears(attachment))
    targets = attachment.method.targets
    if not targets or targets == (ALL_LINEAR,):
        return linears
    if ALL_LINEAR in targets:
        raise UserError(f"lora_target_modules: {ALL_LINEAR} already includes all layers. Drop the other names.")
    outside = [found for found in _outside_blocks(attachment) if _is_named(targets, found[0])]
    for pattern in targets:
        named = any(_is_named((pattern,), path) for path, *_ in outside)
        if not on_any_rank(named or any(pattern_matches(pattern, path) for path, *_ in linears)):
            raise UserError(f"lora_target_modules: {pattern!r} {_why_not(attachment, pattern)} {_list_names(linears)}")
    if outside:
        _check_layout(attachment, outside[0][0])
    return [found for found in linears if any_pattern_matches(targets, found[0])] + outside


def _outside_blocks(attachment: Attachment) -> Iterator[tuple[str, nn.Layer, LayerSplit]]:
    """Yield the embedding, and a head that is not tied to it."""
    family = attachment.family.name
    for path, layer in attachment.layers():
        if f"{path}.weight" == EMBEDDINGS[family] and isinstance(layer, nn.Embedding):
            yield path, layer, LayerSplit("embedding", False, attachment.axis)
        elif f"{path}.weight" == HEADS.get(family) and layer._parameters.get("weight") is not None:
            yield path, layer, LayerSplit("plain", False, attachment.axis)


def _is_named(targets: tuple[str, ...], path: str) -> bool:
    """Return whether a target is the end of a name; regular expressions match only layers of the blocks."""
    return any(path == target or path.endswith(f".{target}") for target in targets)


def _check_layout(attachment: Attachment, path: str) -> None:
    layout = attachment.layout
    if layout.tensor > 1 or layout.pipeline > 1 or (layout.sharding > 1 and layout.sharding_stage == 3):
        raise UserError(
            f"LoRA on {path} does not support this layout: {layout}. Use data parallelism or sharding stage 1 or 2, or drop "
            f"{path.rpartition('.')[2]} from lora_target_modules."
        )


def matching_weights(attachment: Attachment, patterns: tuple[str, ...], field: str) -> list[str]:
    """Return the canonical names of the base's weights that patterns match, directly or by a layer that holds them.

    A pipeline stage may hold none of them: `attach` combines the results of all stages.
    """
    return [name for name in attachment.base if any(_names_weight(pattern, name) for pattern in patterns)]


def _names_weight(pattern: str, name: str) -> bool:
    parts = name.split(".")
    return any(pattern_matches(pattern, ".".join(parts[:end])) for end in range(1, len(parts) + 1))


def _why_not(attachment: Attachment, pattern: str) -> str:
    if any(pattern_matches(pattern, path) for path, _ in attachment.layers()):
        return "is not a linear layer of a transformer block. Train it as a whole with --modules_to_save."
    return "matches no layer."


def _list_names(linears: list[tuple[str, nn.Layer, LayerSplit]]) -> str:
    return f"Use one of: {', '.join(sorted({path.rpartition('.')[2] for path, *_ in linears}))}; or {ALL_LINEAR}."


def on_any_rank(found: bool) -> bool:
    """Return whether a condition holds on any rank, since a pipeline stage sees only its own layers."""
    if dist.get_world_size() == 1:
        return found
    answers: list[bool] = []
    dist.all_gather_object(answers, found)
    return any(answers)
