"""Corrections of GLM (PaddleNLP 3.0.0b4).

- The code compares a method with a number (`attention_mask.dim == 1`), so that no case applies: without a mask every
  position sees every other one. `forward` gets the full mask: causal, or that of a prefix (Du et al. 2022, section 2.1)
  whose length is `attention_mask` [B, 1], with `position_ids` [B, 2, S].
- The loss is not reduced, and fails under tensor parallelism (a misspelled name).
- Generation expects the mask of all tokens that will be generated. With the usual mask [B, S], which is supported here,
  each step computes the whole sequence again.

Its loss is `CausalLMLoss`, as for every family.
"""

from __future__ import annotations

from typing import Any

import paddle

from paddle_llm.core.upstream import replace, replace_forward
from paddle_llm.models.patches.shared.forward import with_loss
from paddle_llm.models.patches.shared.packed_rows import packed_prefix_mask, prefix_mask


def apply() -> None:
    """Replace attributes of PaddleNLP's classes."""
    from paddlenlp.transformers.glm import modeling

    network = modeling.GLMForConditionalGeneration
    replace_forward(
        network,
        _forward_with_mask_and_loss(network.forward),
        "Without a mask every position sees every other one; its loss is not reduced.",
    )
    why = "Sharding stage 3 must know the weights that it reads without calling their layer."
    replace(modeling.GLMModel, "__init__", _init_with_list_of_weights(modeling.GLMModel.__init__), why)
    replace(
        network,
        "prepare_inputs_for_generation",
        _generation_inputs(network.prepare_inputs_for_generation),
        "It expects the mask of all tokens that will be generated.",
    )


def _forward_with_mask_and_loss(forward: Any) -> Any:
    def forward_with_loss(
        self: Any,
        input_ids: Any = None,
        position_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
        return_dict: bool = False,
        **others: Any,
    ) -> Any:
        batch, length = input_ids.shape
        packed = {name: others.pop(name, None) for name in ("segment_lengths", "prefix_lengths")}
        if packed["segment_lengths"] is not None:
            attention_mask = packed_prefix_mask(*packed.values(), length)
        elif attention_mask is None or (attention_mask.ndim == 2 and attention_mask.shape[1] == 1 < length):
            prefix = paddle.zeros([batch, 1], dtype="int64") if attention_mask is None else attention_mask
            attention_mask = prefix_mask(prefix, length)
        elif attention_mask.ndim == 2:  # which positions hold a token
            tokens = attention_mask.astype("bool").reshape([batch, 1, 1, -1])
            attention_mask = prefix_mask(paddle.zeros([batch, 1], dtype="int64"), length) & tokens
        others.update(position_ids=position_ids, attention_mask=attention_mask.astype("float32"))
        return with_loss(self, forward(self, input_ids, return_dict=return_dict, **others), labels)

    return forward_with_loss


def _init_with_list_of_weights(create: Any) -> Any:
    def init_model(self: Any, *args: Any, **kwargs: Any) -> None:
        create(self, *args, **kwargs)
        self.uses_weights_of = (self.word_embeddings,)  # it multiplies by their weight without calling them

    return init_model


def _generation_inputs(prepare: Any) -> Any:
    def generation_inputs(
        self: Any,
        input_ids: Any,
        position_ids: Any = None,
        attention_mask: Any = None,
        cache: Any = None,
        **others: Any,
    ) -> dict[str, Any]:
        if attention_mask is None or attention_mask.ndim != 2 or position_ids is not None:
            return prepare(self, input_ids, position_ids, attention_mask, cache, **others)
        tokens_BS = attention_mask.astype("int64")
        new = input_ids.shape[1] - tokens_BS.shape[1]
        tokens_BS = paddle.concat([tokens_BS, paddle.ones([len(tokens_BS), new], "int64")], 1) if new else tokens_BS
        position_BS = (tokens_BS.cumsum(axis=1) - 1).clip(min=0)
        positions_B2S = paddle.stack([position_BS, paddle.zeros_like(position_BS)], axis=1)
        return {"input_ids": input_ids, "position_ids": positions_B2S, "attention_mask": tokens_BS, "use_cache": False}

    return generation_inputs
