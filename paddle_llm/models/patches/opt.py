"""Corrections of OPT (PaddleNLP 3.0.0b4).

- Its head is a separate matrix although OPT ties it to the embedding: loaded weights leave it random, and under tensor
  parallelism every rank holds all of it. With word_embed_proj_dim (OPT-350m) it also has the wrong width.
- Attributes that the network does not have are looked up in its configuration, which returns None for every name:
  `hasattr(model, "no_sync")` is true, and the trainer calls None with recompute or gradient accumulation.
- It has no recompute; the switch has no effect.
- The causal mask fails if 16 bits are Paddle's default type.
- Dropout under tensor parallelism: heads of different ranks drop the same positions.

Its loss is `CausalLMLoss`, as for every family.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import paddle
from paddle.distributed.fleet.recompute.recompute import recompute

from paddle_llm.core.upstream import remove, replace, replace_forward
from paddle_llm.models.patches.shared.dropout_rng import named_random_state
from paddle_llm.models.patches.shared.forward import WHY_PACKED_ROWS, with_loss, with_packed_rows
from paddle_llm.models.patches.shared.packed_rows import attend, is_sample_ends, sample_positions_of


def apply() -> None:
    """Replace attributes of PaddleNLP's classes."""
    from paddlenlp.transformers.bloom.modeling import parallel_matmul
    from paddlenlp.transformers.opt import modeling

    network, pretrained = modeling.OPTForCausalLM, modeling.OPTPretrainedModel
    forward = network.forward

    def init_tied(self: Any, config: Any) -> None:
        pretrained.__init__(self, config)
        self.opt = modeling.OPTModel(config)
        self.lm_head = modeling.OPTLMHead(config, self.opt.embeddings.word_embeddings.weight)

    def compute_logits(self: Any, hidden: Any) -> paddle.Tensor:
        hidden = getattr(hidden, "last_hidden_state", hidden)
        return parallel_matmul(hidden, self.decoder_weight, self.config.tensor_parallel_output)

    def forward_with_loss(
        self: Any, input_ids: Any = None, labels: Any = None, return_dict: bool = False, **others: Any
    ) -> Any:
        outputs = forward(self, input_ids=input_ids, return_dict=return_dict, **others)
        if isinstance(outputs, paddle.Tensor):
            outputs = (outputs,)
        return with_loss(self, outputs, labels)

    # The network: its head, its loss, attributes that it does not have.
    replace(network, "__init__", init_tied, "Its head is a separate matrix.")
    replace_forward(
        network,
        with_packed_rows(forward_with_loss, "attention_mask"),
        "It has no loss under tensor parallelism and does not support packed rows.",
    )
    replace(network, "_tied_weights_keys", ["lm_head.decoder_weight"], "Its head is a separate matrix.")
    replace(modeling.OPTLMHead, "forward", compute_logits, "Every tensor-parallel rank computes all logits.")
    remove(network, "__getattr__", "It returns None for every attribute that the network does not have.")
    replace(modeling, "finfo", paddle.finfo, "The causal mask fails if 16 bits are the default type.")
    # Layers: recompute, dropout, packed rows.
    _apply_to_layer(modeling)
    _apply_to_positions(modeling)


def _apply_to_layer(modeling: Any) -> None:
    layer, attention = modeling.TransformerDecoderLayer, modeling.MultiHeadAttention
    create, run, attend = layer.__init__, layer.forward, attention.forward

    def init_layer(self: Any, config: Any) -> None:
        create(self, config)
        self.enable_recompute = False  # PaddleNLP's recompute_enable looks for it
        self.reentrant = getattr(config, "recompute_use_reentrant", False)

    def run_replicated(self: Any, *args: Any, **kwargs: Any) -> Any:
        with named_random_state("global_seed"):
            return run(self, *args, **kwargs)

    def run_recomputed(self: Any, tgt: paddle.Tensor, memory: Any = None, tgt_mask: Any = None, **others: Any) -> Any:
        if not self.enable_recompute or tgt.stop_gradient or others.get("use_cache") or others.get("output_attentions"):
            return run_replicated(self, tgt, memory, tgt_mask=tgt_mask, **others)
        return recompute(
            lambda t, mask: run_replicated(self, t, None, mask), tgt, tgt_mask, use_reentrant=self.reentrant
        )

    def run_attention(self: Any, *args: Any, **kwargs: Any) -> Any:
        with named_random_state("local_seed"):
            return attend(self, *args, **kwargs)

    replace(layer, "__init__", init_layer, "It has no recompute.")
    replace(layer, "forward", run_recomputed, "It has no recompute, and dropout differs between tensor-parallel ranks.")
    # The wrapper for packed rows is the outer one: it sets the random state itself.
    why = f"{WHY_PACKED_ROWS} Dropout hides the same positions from heads of different tensor-parallel ranks."
    replace(attention, "forward", _packed_attention(run_attention), why)


def _packed_attention(attend_all: Any) -> Any:
    @wraps(attend_all)
    def attention(self: Any, query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **others: Any) -> Any:
        if not is_sample_ends(attn_mask):
            return attend_all(self, query, key, value, attn_mask, *args, **others)
        batch, length = query.shape[:2]
        projections = (self.q_proj, self.k_proj, self.v_proj)
        states = [linear(query).reshape([batch, length, self.num_heads, self.head_dim]) for linear in projections]
        with named_random_state("local_seed"):
            output = attend(*states, attn_mask, dropout=self.dropout if self.training else 0.0)
        return self.out_proj(output.reshape([batch, length, -1])), None

    return attention


def _apply_to_positions(modeling: Any) -> None:
    table, prepare = modeling.OPTLearnedPositionEmbedding.forward, modeling.OPTModel._prepare_decoder_attention_mask

    @wraps(table)
    def positions(self: Any, attention_mask: paddle.Tensor, past_key_values_length: int = 0) -> paddle.Tensor:
        if is_sample_ends(attention_mask):
            return paddle.nn.Embedding.forward(self, sample_positions_of(attention_mask) + self.offset)
        return table(self, attention_mask, past_key_values_length)

    @wraps(prepare)
    def decoder_mask(self: Any, attention_mask: paddle.Tensor, *args: Any, **others: Any) -> paddle.Tensor:
        return attention_mask if is_sample_ends(attention_mask) else prepare(self, attention_mask, *args, **others)

    replace(modeling.OPTLearnedPositionEmbedding, "forward", positions, WHY_PACKED_ROWS)
    replace(modeling.OPTModel, "_prepare_decoder_attention_mask", decoder_mask, WHY_PACKED_ROWS)
