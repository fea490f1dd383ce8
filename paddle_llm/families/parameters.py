"""The number of parameters of a model, by family.

`planner/flops.py` computes FLOPs from these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from paddle_llm.families.facts import ModelFacts


@dataclass(frozen=True)
class Parameters:
    """Number of parameters of a model, by kind.

    Attributes:
        lookups: Tables that are only indexed (an untied token embedding, learned positions): no product, no FLOPs.
        layers: All transformer layers together.
        head: The matrix that computes logits. If it is tied to the token embedding, it is counted here only.
        rest: Norms outside the layers, and projections between embedding and layers.
    """

    lookups: int
    layers: int
    head: int
    rest: int

    @property
    def total(self) -> int:
        """Number of all parameters."""
        return self.lookups + self.layers + self.head + self.rest


def grouped_query_layer(facts: ModelFacts) -> int:
    """Count a layer of grouped-query attention, SwiGLU and two RMSNorms, with biases only if config.json sets them."""
    h = facts.hidden_size
    query, key_value = facts.num_attention_heads * facts.head_dim, facts.num_key_value_heads * facts.head_dim
    biases = (query + 2 * key_value + h) * bool(facts.raw.get("attention_bias"))
    biases += (2 * facts.intermediate_size + h) * bool(facts.raw.get("mlp_bias"))
    return h * (2 * query + 2 * key_value) + 3 * h * facts.intermediate_size + 2 * h + biases


def gpt_layer(facts: ModelFacts) -> int:
    """Count a layer of full attention, an MLP of two matrices and two LayerNorms, with a bias on everything."""
    h, f = facts.hidden_size, facts.intermediate_size
    return 4 * h * h + 4 * h + 2 * h * f + f + h + 4 * h


def grouped_query_decoder(facts: ModelFacts, layer_biases: int = 0) -> Parameters:
    """Count a decoder of `grouped_query_layer` with one final RMSNorm.

    Args:
        facts: Shape of the model.
        layer_biases: Number of biases per layer that config.json does not mention.
    """
    table = facts.vocab_size * facts.hidden_size
    lookups = 0 if facts.tie_word_embeddings else table
    layers = facts.num_hidden_layers * (grouped_query_layer(facts) + layer_biases)
    return Parameters(lookups, layers, table, facts.hidden_size)
