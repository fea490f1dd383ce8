"""Bottleneck adapters (Houlsby et al. 2019, section 2): small networks in series, after attention and after the MLP.

    y -> y + up(gelu(down(y)))      down [H, a] and its bias, up [a, H] and its bias

They follow the linear layers that write to the residual stream, before the sum. All matrices start normal with standard
deviation 1e-2 (section 3.6), so that the network initially computes almost the same as before.

Every tensor-parallel rank holds them in full: they are about one percent of the network, and splitting them would
cost another sum of activations per layer. With sequence parallelism each rank has a part of the sequence, and the
gradients are summed.
"""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F

from paddle_llm.peft.attachment import Attachment, unsplit_shard
from paddle_llm.peft.methods.parallel_product import LayerSplit, summed_gradient
from paddle_llm.peft.targets import residual_linears

_DEVIATION = 1e-2


def install(attachment: Attachment) -> None:
    """Add an adapter after both halves of every block."""
    for path, layer, split in residual_linears(attachment):
        _install_after(attachment, path, layer, split)


def _install_after(attachment: Attachment, path: str, layer: paddle.nn.Layer, split: LayerSplit) -> None:
    width, dtype = attachment.base_shard(f"{path}.weight").shape[1], layer.weight.dtype
    size = attachment.method.adapter_size
    down = attachment.add_parameter(layer, "adapter_down", path, unsplit_shard((width, size)), _DEVIATION, dtype)
    down_bias = attachment.add_parameter(layer, "adapter_down_bias", path, unsplit_shard((size,)), 0.0, dtype)
    up = attachment.add_parameter(layer, "adapter_up", path, unsplit_shard((size, width)), _DEVIATION, dtype)
    up_bias = attachment.add_parameter(layer, "adapter_up_bias", path, unsplit_shard((width,)), 0.0, dtype)

    def adapt(linear: paddle.nn.Layer, inputs: tuple[Any, ...], output: paddle.Tensor) -> paddle.Tensor:
        tensors = [summed_gradient(tensor, split.axis, split.sequence) for tensor in (down, down_bias, up, up_bias)]
        hidden = F.gelu(F.linear(output, tensors[0], tensors[1]))
        return output + F.linear(hidden, tensors[2], tensors[3])

    attachment.hook_output(layer, adapt)
