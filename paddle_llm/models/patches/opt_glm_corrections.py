"""What is wrong in PaddleNLP 3.0.0b4's OPT and GLM, mended by replacing methods like `corrections.py`.

OPT
- Its head is a matrix of its own where OPT ties it to the embedding: loaded weights leave it random, and under tensor
  parallelism every rank has all of it. With word_embed_proj_dim (OPT-350m) it has the wrong width as well.
- Names that the network does not have are looked for in its configuration, which knows every name as None:
  `hasattr(model, "no_sync")` is true, and the trainer calls None under recompute or accumulation.
- There is no recompute; it is asked for in vain.
- The causal mask fails where 16 bits are Paddle's default type.
- Dropout under tensor parallelism: heads of different ranks lose the same places.

GLM
- The shapes of masks are compared with a method (`attention_mask.dim == 1`), so that no case applies: without a mask
  every position looks at every other one, in silence. `forward` is given the mask in full: causal, or that of a prefix
  (GLM, Du et al. 2022, section 2.1) whose length is `attention_mask` [B, 1], with `position_ids` [B, 2, S].
- The loss is not reduced, and fails under tensor parallelism (a misspelt name).
- Generation wants the mask of all that will be generated, beforehand; the usual one [B, S] it cannot take. With that one
  each step computes the whole sequence anew.

Both take the common criterion.
"""

from __future__ import annotations

from typing import Any

import paddle
from paddle.distributed.fleet.recompute.recompute import recompute

from paddle_llm.models.patches.dropout_rng import named_random_state
from paddle_llm.models.patches.prefix_mask import prefix_mask
from paddle_llm.models.patches.replace_forward import replace_forward
from paddle_llm.models.patches.segments import packed_prefix_mask


def correct_opt() -> None:
    from paddlenlp.transformers.bloom.modeling import parallel_matmul
    from paddlenlp.transformers.opt import modeling

    network, pretrained = modeling.OPTForCausalLM, modeling.OPTPretrainedModel
    forward = network.forward

    def tied(self: Any, config: Any) -> None:
        pretrained.__init__(self, config)
        self.opt = modeling.OPTModel(config)
        self.lm_head = modeling.OPTLMHead(config, self.opt.embeddings.word_embeddings.weight)

    def logits(self: Any, hidden: Any) -> paddle.Tensor:
        hidden = getattr(hidden, "last_hidden_state", hidden)
        return parallel_matmul(hidden, self.decoder_weight, self.config.tensor_parallel_output)

    def with_criterion(
        self: Any, input_ids: Any = None, labels: Any = None, return_dict: bool = False, **others: Any
    ) -> Any:
        outputs = forward(self, input_ids=input_ids, return_dict=return_dict, **others)
        if isinstance(outputs, paddle.Tensor):
            outputs = (outputs,)
        return with_loss(self, outputs, labels)

    network.__init__ = tied
    replace_forward(network, with_criterion)
    network._tied_weights_keys = ["lm_head.decoder_weight"]
    modeling.OPTLMHead.forward = logits
    del network.__getattr__
    modeling.finfo = paddle.finfo
    _correct_opt_layer(modeling)


def _correct_opt_layer(modeling: Any) -> None:
    layer, attention = modeling.TransformerDecoderLayer, modeling.MultiHeadAttention
    create, run, attend = layer.__init__, layer.forward, attention.forward

    def created(self: Any, config: Any) -> None:
        create(self, config)
        self.enable_recompute = False  # PaddleNLP's recompute_enable looks for it
        self.reentrant = getattr(config, "recompute_use_reentrant", False)

    def replicated(self: Any, *args: Any, **kwargs: Any) -> Any:
        with named_random_state("global_seed"):
            return run(self, *args, **kwargs)

    def recomputed(self: Any, tgt: paddle.Tensor, memory: Any = None, tgt_mask: Any = None, **others: Any) -> Any:
        if not self.enable_recompute or tgt.stop_gradient or others.get("use_cache") or others.get("output_attentions"):
            return replicated(self, tgt, memory, tgt_mask=tgt_mask, **others)
        return recompute(lambda t, mask: replicated(self, t, None, mask), tgt, tgt_mask, use_reentrant=self.reentrant)

    def attended(self: Any, *args: Any, **kwargs: Any) -> Any:
        with named_random_state("local_seed"):
            return attend(self, *args, **kwargs)

    layer.__init__, layer.forward, attention.forward = created, recomputed, attended


def correct_glm() -> None:
    from paddlenlp.transformers.glm import modeling

    forward = modeling.GLMForConditionalGeneration.forward

    def with_criterion(
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

    replace_forward(modeling.GLMForConditionalGeneration, with_criterion)
    create = modeling.GLMModel.__init__

    def created(self: Any, *args: Any, **kwargs: Any) -> None:
        create(self, *args, **kwargs)
        self.borrowed_layers = (self.word_embeddings,)  # it multiplies by their weight itself (sharding stage 3)

    modeling.GLMModel.__init__ = created
    prepare = modeling.GLMForConditionalGeneration.prepare_inputs_for_generation

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
        places_BS = (tokens_BS.cumsum(axis=1) - 1).clip(min=0)
        positions_B2S = paddle.stack([places_BS, paddle.zeros_like(places_BS)], axis=1)
        return {"input_ids": input_ids, "position_ids": positions_B2S, "attention_mask": tokens_BS, "use_cache": False}

    modeling.GLMForConditionalGeneration.prepare_inputs_for_generation = generation_inputs


def with_loss(model: Any, outputs: Any, labels: Any) -> Any:
    """Outputs (logits first) with the model's criterion's loss in front, or as an attribute; unchanged without labels."""
    if labels is None:
        return outputs
    if isinstance(outputs, tuple):
        return (model.criterion(outputs[0], labels), *outputs)
    outputs.loss = model.criterion(outputs.logits, labels)
    return outputs
