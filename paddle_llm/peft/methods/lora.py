r"""LoRA (Hu et al. 2021): a trained product of two thin matrices is added to a frozen matrix W.

        x ----> W -----------------(+)---> y        W [in, out] frozen
         \---> A --> B --> * s ----/               A [in, r] normal, B [r, out] zero, s = alpha / r

A is initialised with the variance of the authors' code, 1 / (3 in). rsLoRA: s = alpha / sqrt(r). LoRA+: B has a
higher learning rate. AdaLoRA (Zhang et al. 2023) has a diagonal between A and B, initially zero, and both matrices
are normal; see `adalora.py`. DoRA (Liu et al. 2024) scales each output; see `dora.py`. On an embedding, A is indexed
instead of multiplied; it starts as zeros and B is normal, as in the authors' code.
"""

from __future__ import annotations

import math
from typing import Any

import paddle
import paddle.nn.functional as F

from paddle_llm.models.patches.shared.dropout_rng import named_random_state
from paddle_llm.models.weights.shards import Shard
from paddle_llm.peft.attachment import Attachment, unsplit_shard
from paddle_llm.peft.methods.adalora import penalty
from paddle_llm.peft.methods.dora import Magnitude
from paddle_llm.peft.methods.parallel_product import LayerSplit, product
from paddle_llm.peft.targets import target_layers

_ADALORA_DEVIATION = 0.02


def install(attachment: Attachment) -> None:
    """Add the two matrices to every target layer.

    Raises:
        UserError: If a target is not a linear layer, or matches none.
    """
    for path, layer, split in target_layers(attachment):
        _install_in(attachment, path, layer, split)


def _install_in(attachment: Attachment, path: str, layer: paddle.nn.Layer, split: LayerSplit) -> None:
    method, base = attachment.method, attachment.base_shard(f"{path}.weight")
    adaptive, is_embedding = method.name == "adalora", split.kind == "embedding"
    rank = method.initial_rank if adaptive else method.rank_of(path)
    inputs, outputs = base.shape
    rows = Shard((inputs, rank), 0, base.ranges) if base.is_split and base.axis == 0 else unsplit_shard((inputs, rank))
    columns = (
        Shard((rank, outputs), 1, base.ranges)
        if base.is_split and base.axis == 1
        else unsplit_shard((rank, outputs), 1)
    )
    dtype = layer.weight.dtype
    deviation = _ADALORA_DEVIATION if adaptive else 1 / math.sqrt(3 * inputs)
    a = attachment.add_parameter(layer, "lora_A", path, rows, 0.0 if is_embedding else deviation, dtype)
    middle = attachment.add_parameter(layer, "lora_E", path, unsplit_shard((rank,)), 0.0, dtype) if adaptive else None
    b = attachment.add_parameter(layer, "lora_B", path, columns, deviation if adaptive else float(is_embedding), dtype)
    b.optimize_attr["learning_rate"] = method.lora_plus_scale
    scaling, dropout = method.scaling if adaptive else method.scaling_of(path), method.dropout
    magnitude = Magnitude(attachment, path, layer, split, (a, b), scaling) if method.dora else None
    # Ranks with the same input must drop the same values.
    state = "global_seed" if split.kind in ("column", "shared", "plain") and not split.sequence else "local_seed"

    def add_product(linear: paddle.nn.Layer, inputs: tuple[Any, ...], output: paddle.Tensor) -> paddle.Tensor:
        x = inputs[0]
        if linear.__dict__.get("_is_merged"):
            return output
        if is_embedding:
            added = paddle.matmul(F.embedding(x, a), b) * scaling
            return output + added if magnitude is None else magnitude.scaled(output, added)
        drops = bool(dropout and linear.training)
        if drops:
            with named_random_state(state):
                x = F.dropout(x, dropout)
        left, right = penalty(attachment, a, b) if adaptive and linear.training else (a, b)
        added = product(x, left, right, split, scaling, middle)
        return output + added if magnitude is None else magnitude.scaled(output, added, x if drops else None)

    @paddle.no_grad()
    def merged_weight(weight: paddle.Tensor) -> paddle.Tensor:
        left = a.astype("float32") if middle is None else a.astype("float32") * middle.astype("float32")
        changed = weight + paddle.matmul(left, b.astype("float32")) * scaling
        return changed if magnitude is None else magnitude.merged(changed)

    attachment.hook_output(layer, add_product)
    attachment.register_merge(path, layer, merged_weight)
