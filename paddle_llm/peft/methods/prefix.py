"""Prefix tuning (Li and Liang 2021): every layer has learned keys and values in front of those of the tokens.

Without projection they are parameters of each attention layer, `prefix_key` and `prefix_value` [P, G, D]. With
projection (section 4.3 of the paper) one network computes them for all layers: embeddings [P, H] -> tanh(H x H) -> each
layer's keys and values. Every token sees the whole prefix, positions of tokens do not change, and the cache of
generation does not contain the prefix, so trainer and generation need not know it. GLM (2022) caches hidden states
instead of keys and values; its prefix is `prefix_hidden` [P, H]. `families.spec.PrefixLayers` describes how the prefix
enters the layers of a family.

With tensor parallelism a rank holds the prefixes of its heads, or of all heads if key-value heads are not divided.

Shapes: P prefix tokens, B batch, S sequence, T keys, N heads of this rank, G key-value heads, D head width, H hidden
size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import paddle

from paddle_llm.models.patches.chatglm2 import is_causal_marker
from paddle_llm.models.patches.shared.packed_rows import causal_within_samples, is_sample_ends, sample_ends_of_starts
from paddle_llm.models.weights.shards import Shard
from paddle_llm.peft.attachment import Attachment, unsplit_shard
from paddle_llm.peft.methods.parallel_product import summed_gradient

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

_DEVIATION = 0.02
_HIDDEN = -1e30
KeysValues = Callable[[], Sequence[paddle.Tensor]]  # returns keys and values, [P, G, D] each
_Install = Callable[[Attachment, str, paddle.nn.Layer, "_SharedProjection | None"], None]


def install(attachment: Attachment) -> None:
    """Add a prefix to every attention layer."""
    spec = attachment.family.network.prefix
    install_in = _INSTALL[spec.kind]
    layers = [(path, layer) for path, layer in attachment.layers() if path.endswith(spec.layer)]
    projection = _SharedProjection(attachment) if attachment.method.prefix_projection else None
    for path, layer in layers:
        install_in(attachment, path, layer, projection)


# ---- keys and values of the prefix -----------------------------------------------------------------------------------


class _SharedProjection:
    """The part of the projection that all layers share: P hidden states of width H.

    Each layer that uses it computes it, so that recompute can do the same.
    """

    def __init__(self, attachment: Attachment):
        count, width = attachment.method.num_prefix_tokens, attachment.model.config.hidden_size
        model = attachment.model
        self.width = width
        self._embedding = attachment.add_parameter(
            model, "prefix_embedding", "", unsplit_shard((count, width)), _DEVIATION
        )
        self._weight = attachment.add_parameter(
            model, "prefix_weight", "", unsplit_shard((width, width)), 1 / width**0.5
        )
        self._bias = attachment.add_parameter(model, "prefix_bias", "", unsplit_shard((width,)), 0.0)

    def __call__(self) -> paddle.Tensor:
        return paddle.tanh(paddle.nn.functional.linear(self._embedding, self._weight, self._bias))


def _keys_values(
    attachment: Attachment,
    path: str,
    layer: paddle.nn.Layer,
    projection: _SharedProjection | None,
    groups: int,
    shared: bool = False,
) -> KeysValues:
    """Return a function that computes the prefix of a layer.

    Args:
        attachment: Attachment of the method to the network.
        path: Path of the layer.
        layer: Attention layer.
        projection: Shared part of the projection; None without projection.
        groups: Number of key-value heads of the whole model.
        shared: Whether every tensor-parallel rank has all of them and uses some; else each has an equal part.
    """
    config, axis = attachment.model.config, attachment.axis
    divided = axis.size > 1 and not shared
    count, width = attachment.method.num_prefix_tokens, config.hidden_size // config.num_attention_heads
    part = groups // axis.size
    ranges = ((axis.rank * part, (axis.rank + 1) * part),) if divided else ((0, groups),)
    if projection is None:
        shard = Shard((count, groups, width), 1, ranges)
        pair = [attachment.add_parameter(layer, f"prefix_{what}", path, shard, _DEVIATION) for what in ("key", "value")]
        return lambda: [summed_gradient(tensor, axis, shared) for tensor in pair]
    shard = Shard((projection.width, groups, width), 1, ranges)
    matrices = [
        attachment.add_parameter(layer, f"prefix_{what}_weight", path, shard, _DEVIATION) for what in ("key", "value")
    ]
    heads = sum(stop - start for start, stop in ranges)

    def project() -> Sequence[paddle.Tensor]:
        hidden_PH = summed_gradient(projection(), axis, divided or shared)
        parts = [
            summed_gradient(matrix, axis, shared).reshape([projection.width, heads * width]) for matrix in matrices
        ]
        return [paddle.matmul(hidden_PH, matrix).reshape([count, heads, width]) for matrix in parts]

    return project


def _repeated(tensor_PGD: paddle.Tensor, heads: int) -> paddle.Tensor:
    """Return [P, N, D] with each key-value head repeated for its queries."""
    groups = tensor_PGD.shape[1]
    return tensor_PGD if groups == heads else tensor_PGD.repeat_interleave(heads // groups, axis=1)


# ---- masks ----------------------------------------------------------------------------------------------------------


def _with_prefix(mask: paddle.Tensor, count: int, value: float = 0.0) -> paddle.Tensor:
    """Return a mask [..., T] that is added to scores as [..., P + T]; every token sees the prefix."""
    return paddle.concat([paddle.full([*mask.shape[:-1], count], value, mask.dtype), mask], axis=-1)


def _causal(queries: int, keys: int, dtype: paddle.dtype) -> paddle.Tensor:
    """Return the causal mask [1, 1, S, T] of the last S of T positions."""
    hidden = paddle.full([1, 1, queries, keys], _hidden(dtype), "float32")
    return paddle.triu(hidden, diagonal=keys - queries + 1).astype(dtype)


def _hidden(dtype: paddle.dtype | str) -> float:
    """Return the number that hides a key in a mask of this type; -1e30 would be infinite in float16."""
    return max(_HIDDEN, paddle.finfo(dtype).min)


def _packed(sample_ends_BS: paddle.Tensor, dtype: paddle.dtype | str) -> paddle.Tensor:
    """Return the mask [B, 1, S, S] of packed rows: each position sees earlier ones of its sample."""
    return paddle.where(
        causal_within_samples(sample_ends_BS), paddle.zeros([1]), paddle.full([1], _hidden(dtype))
    ).astype(dtype)


# ---- layers that call a function of queries, keys and values [B, S, N, D] --------------------------------------------


def _install_in_function(
    attachment: Attachment, path: str, layer: paddle.nn.Layer, projection: _SharedProjection | None
) -> None:
    groups = attachment.model.config.num_key_value_heads
    indices = getattr(layer, "kv_indices", None)
    pair = _keys_values(attachment, path, layer, projection, groups, shared=indices is not None)
    count, attend = attachment.method.num_prefix_tokens, layer.attn_func

    def attention(
        query: paddle.Tensor,
        config: PretrainedConfig,
        key: paddle.Tensor,
        value: paddle.Tensor,
        attention_mask: paddle.Tensor | None,
        *others: Any,
        **named: Any,
    ) -> Any:
        batch, length, total = query.shape[0], query.shape[1], key.shape[1]
        ends = named.pop("attn_mask_startend_row_indices", None)
        ends = attention_mask if is_sample_ends(attention_mask) else ends
        if ends is not None:
            attention_mask = _packed(ends, query.dtype)
        elif attention_mask is None:
            attention_mask = _causal(length, total, query.dtype)
        prefix: Sequence[paddle.Tensor] = pair()
        if indices is not None:
            prefix = [paddle.index_select(tensor, indices, axis=1) for tensor in prefix]
        prefix = [
            _repeated(tensor, key.shape[2]).astype(key.dtype).unsqueeze(0).expand([batch, -1, -1, -1])
            for tensor in prefix
        ]
        key, value = (paddle.concat(two, axis=1) for two in zip(prefix, (key, value), strict=True))
        # PaddleNLP's functions require a mask [B, 1, S, T].
        mask = _with_prefix(attention_mask.astype(query.dtype), count).expand([batch, 1, length, count + total])
        return attend(query, config, key, value, mask, *others, **named)

    attachment.replace_attribute(layer, "attn_func", attention)


# ---- layers with a sub-layer for queries, keys and values [S, B, N, D] -----------------------------------------------


def _install_in_core(
    attachment: Attachment, path: str, layer: paddle.nn.Layer, projection: _SharedProjection | None
) -> None:
    groups = attachment.model.config.multi_query_group_num
    pair = _keys_values(attachment, path, layer, projection, groups)
    count, core = attachment.method.num_prefix_tokens, layer.core_attention
    attend = core.forward

    def attention(query: paddle.Tensor, key: paddle.Tensor, value: paddle.Tensor, attention_mask: paddle.Tensor) -> Any:
        length = query.shape[0]
        if is_causal_marker(attention_mask, length):
            attention_mask = _causal(length, length, attention_mask.dtype)
        elif attention_mask.shape[2] == 1 < length:  # the beginnings of packed samples
            attention_mask = _packed(sample_ends_of_starts(attention_mask[:, 0, 0] == 0), attention_mask.dtype)
        states = []
        for tensor, prefix in zip((key, value), pair(), strict=True):
            prefix = _repeated(prefix, tensor.shape[2]).astype(tensor.dtype).unsqueeze(1)
            states.append(paddle.concat([prefix.expand([-1, tensor.shape[1], -1, -1]), tensor], axis=0))
        return attend(query, *states, _with_prefix(attention_mask, count))

    attachment.replace_attribute(core, "forward", attention)


# ---- layers that receive the prefix as cached keys and values --------------------------------------------------------


def _install_in_cache(
    attachment: Attachment, path: str, layer: paddle.nn.Layer, projection: _SharedProjection | None
) -> None:
    """Add a prefix to a layer whose `forward` takes cached keys and values and returns them with its own."""
    spec, config = attachment.family.network.prefix, attachment.model.config
    axis, groups = spec.cache_axis, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    pair = _keys_values(attachment, path, layer, projection, groups)
    count, forward = attachment.method.num_prefix_tokens, layer.forward

    def attention(*args: Any, **named: Any) -> Any:
        inputs = {**dict(zip(spec.arguments, args, strict=False)), **named}
        rows = next(iter(inputs.values())).shape[1 if axis == 0 else 0]
        prefix = [_as_cache(tensor, rows, axis) for tensor in pair()]
        cached = inputs.get(spec.cache)
        if cached is not None:
            prefix = [paddle.concat([one, old], axis=axis) for one, old in zip(prefix, cached, strict=True)]
        kind = getattr(layer, "Cache", None)
        inputs[spec.cache] = kind(*prefix) if kind is not None else tuple(prefix)
        if inputs[spec.mask] is None:  # with flash attention, for the kernel's causal mask
            hidden = next(iter(inputs.values()))
            length = hidden.shape[1]
            inputs[spec.mask] = _causal(length, length + (cached[0].shape[axis] if cached else 0), hidden.dtype)
        elif is_sample_ends(inputs[spec.mask]):
            inputs[spec.mask] = _packed(inputs[spec.mask], "float32")
        inputs[spec.mask] = _with_prefix(inputs[spec.mask], count)
        if spec.alibi:
            inputs["alibi"] = _with_prefix(inputs["alibi"], count)
        outputs = forward(**inputs)
        return _without_prefix(outputs, count, axis, spec.cache_is_last) if inputs.get("use_cache") else outputs

    attachment.replace_attribute(layer, "forward", attention)


def _as_cache(tensor_PND: paddle.Tensor, rows: int, axis: int) -> paddle.Tensor:
    """Repeat a prefix for all rows of a batch, in the shape of a cache whose positions are on `axis`."""
    if axis == 2:
        tensor_PND = tensor_PND.transpose([1, 0, 2])
    batch_axis = 1 if axis == 0 else 0
    shape = [-1, -1, -1]
    shape.insert(batch_axis, rows)
    return tensor_PND.unsqueeze(batch_axis).expand(shape)


def _without_prefix(outputs: tuple[Any, ...], count: int, axis: int, is_last: bool) -> tuple[Any, ...]:
    """Remove the prefix from the cache in the outputs of a layer.

    Args:
        outputs: Outputs of the layer.
        count: Number of prefix tokens.
        axis: Axis of the positions in the cached keys and values.
        is_last: Whether the cache is the last output; else the second one.
    """
    index = len(outputs) - 1 if is_last else 1
    cache = outputs[index]
    kept = [paddle.slice(tensor, [axis], [count], [tensor.shape[axis]]) for tensor in cache]
    shortened = type(cache)(*kept) if hasattr(cache, "_fields") else tuple(kept)
    return (*outputs[:index], shortened, *outputs[index + 1 :])


# ---- layers that cache hidden states [B, T, H] -----------------------------------------------------------------------


def _install_in_hidden_states(
    attachment: Attachment, path: str, layer: paddle.nn.Layer, projection: _SharedProjection | None
) -> None:
    count, width = attachment.method.num_prefix_tokens, attachment.model.config.hidden_size
    prefix_PH = attachment.add_parameter(layer, "prefix_hidden", path, unsplit_shard((count, width)), _DEVIATION)
    forward = layer.forward

    def attention(
        hidden_states: paddle.Tensor, ltor_mask: paddle.Tensor, cache: paddle.Tensor | None = None
    ) -> paddle.Tensor:
        prefix = prefix_PH.unsqueeze(0).expand([hidden_states.shape[0], -1, -1])
        cache = prefix if cache is None else paddle.concat([prefix, cache], axis=1)
        # GLM multiplies the scores by its mask: 1 shows a position.
        return forward(hidden_states, _with_prefix(ltor_mask, count, 1.0), cache)

    attachment.replace_attribute(layer, "forward", attention)


_INSTALL: dict[str, _Install] = {
    "function": _install_in_function,
    "core": _install_in_core,
    "cache": _install_in_cache,
    "hidden states": _install_in_hidden_states,
}
