"""BLOOM in pipeline stages, which PaddleNLP 3.0.0b4 does not have, built from PaddleNLP's blocks.

Stages send hidden states and, if samples are padded or packed, one small tensor of integers. Each stage computes the
slopes of ALiBi and the causal mask. The head is the embedding: the last stage has a copy, which Paddle's shared layers
keep equal. Weights have the names of one process.

Shapes: B batch, S sequence, H hidden size, N attention heads of this rank, V vocabulary (this rank's part of it).
"""

from __future__ import annotations

import copy
from typing import Any

import paddle
from paddle import nn
from paddle.distributed import fleet
from paddle.distributed.fleet.meta_parallel import LayerDesc, PipelineLayer, SharedLayerDesc
from paddle.distributed.fleet.recompute.recompute import recompute
from paddlenlp.transformers.bloom.configuration import BloomConfig
from paddlenlp.transformers.bloom.modeling import (
    BloomBlock,
    BloomLMHead,
    BloomPreTrainedModel,
    build_alibi_tensor,
)
from paddlenlp.transformers.model_utils import PipelinePretrainedModel

from paddle_llm.models.patches.bloom import layer_mask, states_dtype
from paddle_llm.models.patches.shared.forward import stage_inputs
from paddle_llm.models.patches.shared.packed_rows import is_sample_ends

_SHARED = "bloom_embedding"


class BloomEmbeddingPipe(nn.Layer):
    """Embedding: input_ids [B, S] -> hidden states [B, S, H]. The mask is passed to the next layer."""

    def __init__(self, config: BloomConfig):
        super().__init__()
        sizes = (config.vocab_size, config.hidden_size)
        parallel = config.tensor_parallel_degree > 1
        self.word_embeddings = fleet.meta_parallel.VocabParallelEmbedding(*sizes) if parallel else nn.Embedding(*sizes)
        self.word_embeddings_layernorm = nn.LayerNorm(config.hidden_size, epsilon=config.layer_norm_epsilon)

    @property
    def embedding_weight(self) -> paddle.Tensor:
        """Weight [V, H] that the last stage shares."""
        return self.word_embeddings.weight

    def forward(self, args: Any) -> Any:
        """Return hidden states, with the mask if one is given."""
        input_ids_BS, mask = _unpack(args)
        return _pack(self.word_embeddings_layernorm(self.word_embeddings(input_ids_BS)), mask)


class BloomBlockPipe(BloomBlock):
    """One layer. A mask is booleans [B, S] that mark tokens (None: all are), or `sample_ends` of packed rows."""

    def __init__(self, config: BloomConfig, layer_number: int):
        super().__init__(config, layer_number=layer_number)
        self.config = config
        self.enable_recompute = False  # PaddleNLP's recompute_enable looks for it
        self.may_recompute = layer_number not in (config.no_recompute_layers or ())

    def forward(self, args: Any) -> Any:
        """Return hidden states, with the mask if one is given."""
        hidden_BSH, mask = _unpack(args)
        if self.enable_recompute and self.may_recompute and not hidden_BSH.stop_gradient:
            reentrant = self.config.recompute_use_reentrant
            hidden_BSH = recompute(self._run, hidden_BSH, mask, use_reentrant=reentrant)
        else:
            hidden_BSH = self._run(hidden_BSH, mask)
        return _pack(hidden_BSH, mask)

    def _run(self, hidden_BSH: paddle.Tensor, mask: paddle.Tensor | None) -> paddle.Tensor:
        alibi, bias = attention_biases(hidden_BSH, None if is_sample_ends(mask) else mask, self.config)
        bias = mask if is_sample_ends(mask) else bias
        return super().forward(hidden_BSH, attention_mask=bias, alibi=alibi)[0]


class BloomNormPipe(nn.LayerNorm):
    """The final norm, which drops the mask."""

    def forward(self, args: Any) -> paddle.Tensor:
        """Return normalized hidden states [B, S, H]."""
        return super().forward(_unpack(args)[0])


class BloomHeadPipe(BloomLMHead):
    """Head: hidden states [B, S, H] -> logits [B, S, V]."""

    def __init__(self, config: BloomConfig):
        degree = config.tensor_parallel_degree
        part = copy.copy(config)
        part.vocab_size = config.vocab_size // degree
        super().__init__(part)
        self.decoder_weight.is_distributed = degree > 1
        self.decoder_weight.split_axis = 0

    @property
    def embedding_weight(self) -> paddle.Tensor:
        """Copy [V, H] of the first stage's embedding."""
        return self.decoder_weight

    def forward(self, hidden_BSH: paddle.Tensor) -> paddle.Tensor:
        """Return logits [B, S, V]."""
        return super().forward(hidden_BSH, self.config.tensor_parallel_output)


class BloomForCausalLMPipe(PipelinePretrainedModel, PipelineLayer):
    """BLOOM as a sequence of layers, built like PaddleNLP's pipelines.

    `recompute_enable()` turns recompute on.

    Args:
        config: PaddleNLP's configuration with tensor-parallel degree and rank, virtual stages and recompute.
    """

    config_class = BloomConfig
    _get_tensor_parallel_mappings = BloomPreTrainedModel._get_tensor_parallel_mappings
    _get_name_mappings = BloomPreTrainedModel._get_name_mappings
    _init_weights = BloomPreTrainedModel._init_weights
    _tied_weights_keys = ["lm_head.decoder_weight"]
    _prepare_pipeline_inputs_func = staticmethod(stage_inputs)

    def __init__(self, config: BloomConfig):
        self.config = config
        self._add_layers(config)
        topology = fleet.get_hybrid_communicate_group().topology()
        even = config.n_layer % topology.get_dim_size("pipe") == 0
        PipelineLayer.__init__(
            self,
            layers=self.get_sequential_layers(),
            loss_fn=nn.CrossEntropyLoss(),  # replaced by `build_network`
            topology=topology,
            seg_method="layer:BloomBlock" if even else "uniform",
            num_virtual_pipeline_stages=config.virtual_pp_degree,
        )
        self.apply(self._init_weights)

    def _add_layers(self, config: BloomConfig) -> None:
        """Add the layers in order, each with the prefix that the names of its weights have in one process."""

        def shared(layer: type) -> SharedLayerDesc:
            return SharedLayerDesc(_SHARED, layer, shared_weight_attr="embedding_weight", config=config)

        self.add_sequential_layer(shared(BloomEmbeddingPipe), "bloom")
        for number in range(config.n_layer):
            block = LayerDesc(BloomBlockPipe, config=config, layer_number=number)
            self.add_sequential_layer(block, f"bloom.h.{number}")
        norm = LayerDesc(BloomNormPipe, config.hidden_size, epsilon=config.layer_norm_epsilon)
        self.add_sequential_layer(norm, "bloom.ln_f")
        self.add_sequential_layer(shared(BloomHeadPipe), "lm_head")


def attention_biases(
    hidden_BSH: paddle.Tensor, mask_BS: paddle.Tensor | None, config: BloomConfig
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Return what is added to scores: ALiBi (Press et al. 2022) [B x N, 1, S] and the mask (`bloom.py`)."""
    batch, length = hidden_BSH.shape[:2]
    heads = config.n_head // config.tensor_parallel_degree
    first = config.tensor_parallel_rank * heads
    tokens_BS = paddle.ones([batch, length], dtype="bool") if mask_BS is None else mask_BS.astype("bool")
    alibi_BNS = build_alibi_tensor(tokens_BS, config.n_head, dtype=hidden_BSH.dtype)[:, first : first + heads]
    mask = layer_mask(mask_BS, length, length, config, states_dtype(hidden_BSH))
    return alibi_BNS.reshape([batch * heads, 1, length]), mask


def _unpack(args: Any) -> tuple[paddle.Tensor, paddle.Tensor | None]:
    tensor, mask, *_ = (
        args if isinstance(args, (tuple, list)) else (args, None)
    )  # position ids follow, which ALiBi does not use
    if mask is not None:
        mask.stop_gradient = True
    return tensor, mask


def _pack(hidden: paddle.Tensor, mask: paddle.Tensor | None) -> Any:
    return hidden if mask is None else (hidden, mask.clone())
