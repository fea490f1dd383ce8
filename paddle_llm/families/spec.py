"""The description of one model family: everything that differs between families, as data.

Every field is required, so that a new family sets each of them. This module does not import Paddle: classes are given by
name and imported when a model is built.

Shapes: B batch, S sequence length, T length of a cache, N heads, D head width.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.parameters import ModelShapes

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

ROW, COLUMN = 0, -1  # axes of a matrix [in, out]
ALL_GRANULARITIES = ("full", "full_attn", "core_attn")

Translate = Callable[[dict[str, Any], dict[str, Any], list[str]], None]


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What PaddleNLP's network supports.

    Attributes:
        sequence_parallel: Whether its layers can split activations along the sequence.
        recompute_granularities: Values of `--recompute_granularity` that have an effect.
        recompute_skips_layers: When `--no_recompute_layers` has an effect.
        flash_attention, fused_rms_norm, fused_rope: Whether its layers can use these kernels.
        fused_matrices: Whether query, key and value, and gate and up projection, may each be one matrix.
        replicates_key_value_heads: Whether every tensor rank keeps all key-value heads if they do not divide by the
            degree.
        needs_divided_hidden_size: Whether heads x head width must be the hidden size. The reader checks it.
        prompt_tuning: Whether trained embeddings can precede its inputs.
        prefix_projection: Whether one network can produce the prefixes of all layers.
        packed_prefix: Whether prefix tuning can be combined with packed rows.
    """

    sequence_parallel: bool
    recompute_granularities: tuple[str, ...]
    recompute_skips_layers: Literal["always", "in a pipeline", "unless full in a pipeline", "never"]
    flash_attention: bool
    fused_rms_norm: bool
    fused_rope: bool
    fused_matrices: bool
    replicates_key_value_heads: bool
    needs_divided_hidden_size: bool
    prompt_tuning: bool
    prefix_projection: bool
    packed_prefix: bool

    def skips_layers(self, *, in_pipeline: bool, part: str) -> bool:
        """Return whether `--no_recompute_layers` has an effect.

        Args:
            in_pipeline: Whether the network has pipeline stages.
            part: Requested part of a layer to recompute, as in `--recompute_granularity`.
        """
        if self.recompute_skips_layers == "in a pipeline":
            return in_pipeline
        if self.recompute_skips_layers == "unless full in a pipeline":
            return not (in_pipeline and part == "full")
        return self.recompute_skips_layers == "always"


@dataclass(frozen=True, kw_only=True)
class DropoutKeys:
    """Names that PaddleNLP's configuration gives to dropout of hidden states and of attention probabilities.

    Attributes:
        hidden, attention: Names of the fields.
        default_hidden, default_attention: Rates where config.json has no such field.
    """

    hidden: tuple[str, ...]
    attention: tuple[str, ...]
    default_hidden: float
    default_attention: float


@dataclass(frozen=True, kw_only=True)
class ConfigJson:
    """Fields of config.json and of PaddleNLP's configuration object.

    Attributes:
        model_types: Values of `model_type`, in lower case, that mean this family.
        identify: Function from a config.json with one of these types to the name of the family.
        known_fields: Fields that the family's networks read or that its published folders carry without effect. Fields
            of all families are not repeated here.
        translate: Function (values, raw, problems) that changes values in place to PaddleNLP's names and appends what
            PaddleNLP cannot express to problems.
        write: Function from PaddleNLP's configuration to the fields of Hugging Face's config.json.
        feed_forward_factor: Feed-forward width over hidden size where config.json has no such field.
        key_value_heads: Function from config.json to whether its number of key-value heads applies.
        layers: Attribute of PaddleNLP's configuration with the number of layers.
        dropout: Attributes with the dropout; None if the network has no dropout.
        epsilon: Attribute with the epsilon of the norms, or the number that PaddleNLP's network uses instead.
        sequence_length: Attribute that receives the length of this run's rows: `seq_length` always, or the size of the
            table of positions if sequence parallelism needs it.
        attention_window: Field that limits how many tokens back attention reaches; None if there is no such field.
        code_repository: Repository with the authors' code, for a family that is not part of transformers; else None.
    """

    model_types: tuple[str, ...]
    identify: Callable[[Mapping[str, Any]], str]
    known_fields: frozenset[str]
    translate: Translate
    write: Callable[[PretrainedConfig], dict[str, Any]]
    feed_forward_factor: int | None
    key_value_heads: Callable[[Mapping[str, Any]], bool]
    layers: str
    dropout: DropoutKeys | None
    epsilon: str | float
    sequence_length: Literal["seq_length", "position table"] | None
    attention_window: str | None
    code_repository: str | None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Names and layout of the weights.

    A canonical name is the one of PaddleNLP's network in one process.

    Attributes:
        embedding: Canonical name of the token embedding.
        head: Canonical name of a head that is not tied to the embedding; None if the head is always tied.
        tied_head: Name of a tied head in the network's `state_dict()`; None if the network has none.
        tie: Whether the head is the embedding.
        prefixes: (prefix of a canonical name, prefix of Hugging Face's name); the first match is used.
        infixes: (part of a canonical name, part of Hugging Face's name).
        infix_prefix: Prefix of Hugging Face's names that have such parts; None without infixes.
        hugging_face_base_prefix: Prefix that a checkpoint of Hugging Face's network without its head omits.
        hugging_face_sign: Prefix by which names of Hugging Face are recognised; None if no such prefix exists.
        split_axes: (regular expression for the end of a canonical name, axis that tensor parallelism splits). A weight
            that matches none is whole on every rank.
        sections: (part of a name, how the split axis is divided): query, key and value side by side; two halves, each
            split evenly; query, key and value of one head after the other on each rank.
        residual_outputs: Ends of names of the matrices that write to the residual stream, whose random values the
            authors scaled by 1 / sqrt(2 layers).
    """

    embedding: str
    head: str | None
    tied_head: str | None
    tie: Literal["always", "never", "configured"]
    prefixes: tuple[tuple[str, str], ...]
    infixes: tuple[tuple[str, str], ...]
    infix_prefix: str | None
    hugging_face_base_prefix: str
    hugging_face_sign: str | None
    split_axes: tuple[tuple[str, int], ...]
    sections: tuple[tuple[str, Literal["query, key, value", "halves", "by head"]], ...]
    residual_outputs: tuple[str, ...]

    def split_axis(self, name: str, ndim: int) -> int | None:
        """Return the axis along which tensor parallelism splits a weight, >= 0; None if every rank has all of it.

        Args:
            name: Canonical name.
            ndim: Number of its axes.
        """
        for pattern, axis in self.split_axes:
            if re.search(rf"(^|\.){pattern}$", name):
                return axis % ndim
        return None

    @property
    def same_names(self) -> bool:
        """Whether PaddleNLP and Hugging Face give the weights the same names."""
        return all(ours == theirs for ours, theirs in self.prefixes) and not self.infixes


@dataclass(frozen=True, kw_only=True)
class PrefixLayers:
    """How prefix tuning adds keys and values to the attention layers.

    Attributes:
        layer: End of the path of an attention layer.
        kind: `function`: the layer calls `attn_func` with queries, keys and values. `core`: the layer has a sub-layer
            for them. `cache`: keys and values enter as cached ones. `hidden states`: hidden states are cached instead.
        arguments: Names of the arguments of the layer's `forward`, in order. This and the following fields are used for `cache`.
        cache, mask: Names of the arguments for the cache and the mask.
        cache_axis: Axis of the cached tokens: 0 for [T, B, N, D], 1 for [B, T, N, D], 2 for [B, N, T, D].
        alibi: Whether `forward` takes an argument `alibi` [..., T].
        cache_is_last: Whether the new cache is the last output; otherwise it is the second.
    """

    layer: str
    kind: Literal["function", "core", "cache", "hidden states"]
    arguments: tuple[str, ...]
    cache: str
    mask: str
    cache_axis: int
    alibi: bool
    cache_is_last: bool


@dataclass(frozen=True, kw_only=True)
class Network:
    """Arguments, outputs and layer names of PaddleNLP's network.

    Attributes:
        positions: Kind of position encoding.
        bidirectional_prefix: Whether the tokens of a prompt attend to each other in both directions.
        pretrains_prefix: Whether pretraining samples consist of a prefix and a continuation.
        prompt_marks: Attributes of the configuration with the ids of the special tokens at the end of a prompt.
        head_path: Path of the layer that computes logits; with `head_is_norm`, of the norm before the logits.
        head_is_norm: Whether the logits are computed without a separate layer.
        head_length_axis: Axis of the positions in the head's input.
        cache: Name of the argument that takes the cache.
        cache_row_axis: Axis of the rows in the cached tensors.
        takes_positions: Whether `position_ids` is an argument; otherwise positions are counted in the mask.
        full_mask: Whether the attention mask is [B, 1, S, T]; otherwise it is [B, T].
        block_positions: Whether positions are [B, 2, S]; the second row counts tokens after the prefix (GLM, Du et al.
            2022).
        prefix: How prefix tuning adds keys and values.
        default_lora_targets: Layers that PEFT 0.17 adapts if `target_modules` is null; empty if it names none.
        zero_gradient: A tensor whose gradient is zero in exact arithmetic, and a tensor to whose gradient norm its rounding
            error is compared, both by the end of the canonical name; None if the network has no such tensor.
        zero_gradient_part: A tensor of which one part has a zero gradient, by the end of the canonical name, and the index of
            that part in query, key and value; None if the network has no such tensor.
    """

    positions: Literal["rotary", "ALiBi", "learned"]
    bidirectional_prefix: bool
    pretrains_prefix: bool
    prompt_marks: tuple[str, ...]
    head_path: str
    head_is_norm: bool
    head_length_axis: int
    cache: str
    cache_row_axis: int
    takes_positions: bool
    full_mask: bool
    block_positions: bool
    prefix: PrefixLayers
    default_lora_targets: tuple[str, ...]
    zero_gradient: tuple[str, str] | None
    zero_gradient_part: tuple[str, int] | None


@dataclass(frozen=True, kw_only=True)
class StaticProgram:
    """Structure of the network, for the static export (`export/targets/static/`).

    Attributes:
        layer: Prefix of the canonical names of a layer; {} is its number.
        qkv, up: Names within a layer of the matrices that are concatenated.
        out, down: Names within a layer of the output matrices of attention and MLP.
        norms: Names within a layer of the norms of attention and MLP.
        first_norm: Canonical name of the norm after the embedding; None without such a norm.
        last_norm: Canonical name of the final norm.
        position_tables: Canonical names of tables of learned positions.
        project_in, project_out: Canonical names of projections between embedding and layers; None without them.
        activation: `swiglu` (gate | up), `gelu` (tanh approximation) or `relu`.
        rms_norm: Whether the norms are RMSNorms.
        rotary: Which columns of a head are rotated together. `halves`: i and i + D/2. `half the head`: neighbours in
            the first half. `two-dimensional`: each half by its own row of positions.
        rotary_class: Attention class of PaddleNLP ("module:attribute") whose table of angles is used; None otherwise.
        interleaved_qkv: Whether the columns of query, key and value alternate by key-value head.
        scaled_by_layer: Whether scores are divided by the layer's number as well (ChatGLM-6B).
        residual: Factor of the normed input if that is the residual: the number sqrt(2 layers), 1 if the configuration
            sets `apply_residual_connection_post_layernorm`, or None.
        norm_first: Attribute of the configuration that puts norms before attention and MLP; None: always.
        position_rows: Attribute of the configuration that sets two rows of positions, or their number.
        position_offset: Number added to a position before it is looked up.
    """

    layer: str
    qkv: tuple[str, ...]
    out: str
    up: tuple[str, ...]
    down: str
    norms: tuple[str, str]
    first_norm: str | None
    last_norm: str
    position_tables: tuple[str, ...]
    project_in: str | None
    project_out: str | None
    activation: Literal["swiglu", "gelu", "relu"]
    rms_norm: bool
    rotary: Literal["halves", "half the head", "two-dimensional"] | None
    rotary_class: str | None
    interleaved_qkv: bool
    scaled_by_layer: bool
    residual: Literal["sqrt(2 layers)", "configured"] | None
    norm_first: str | None
    position_rows: int | str
    position_offset: int


@dataclass(frozen=True, kw_only=True)
class CpuOperations:
    """What the network's operations keep for the backward pass on a CPU, for the planner of memory.

    Attributes:
        attention_in_blocks: Whether attention skips the upper half of the scores (`models/patches/shared/cpu_attention.py`).
        activation_keeps: Number of tensors of the feed-forward width that the activation keeps beside its result.
    """

    attention_in_blocks: bool
    activation_keeps: int


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """The network of llama.cpp that runs a family.

    Attributes:
        architecture: Value of `general.architecture`.
        interleaves_rotary: Whether RoPE rotates neighboring values (2i, 2i + 1) of a head, so that the rows of the query and
            key matrices are written in another order than in Hugging Face's files, which rotate (i, i + D/2).
    """

    architecture: str
    interleaves_rotary: bool


@dataclass(frozen=True, kw_only=True)
class Engines:
    """Other programs that can run an export of the family.

    Attributes:
        transformers: Whether transformers has the network itself, with `generate`.
        paddleformers: Whether PaddleFormers runs it on a CPU.
        fastdeploy: Whether FastDeploy 2.x has a network for it.
        gguf: How llama.cpp runs it; None if the export to GGUF is not supported.
    """

    transformers: bool
    paddleformers: bool
    fastdeploy: bool
    gguf: Gguf | None


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family.

    Attributes:
        name: Name in `ModelFacts.model_type` and in the product's files.
        title: Name in messages.
        aliases: Other values of `--model_type` for this family.
        config_class, model_class: PaddleNLP's classes, as "module:attribute".
        pipeline_class: Class for pipeline stages; None without pipeline support.
        patches: Module with the corrections of PaddleNLP's classes.
        capabilities: What PaddleNLP's network supports.
        config_json: Fields of config.json.
        weights: Names and layout of the weights.
        network: Arguments, outputs and layer names.
        static_program: Structure of the network, for the static export.
        cpu_operations: What operations keep on a CPU.
        engines: Other programs that can run an export.
        shapes: Function from the family and the shape of a model to its weights.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    config_class: str
    model_class: str
    pipeline_class: str | None
    patches: str
    capabilities: Capabilities
    config_json: ConfigJson
    weights: Weights
    network: Network
    static_program: StaticProgram
    cpu_operations: CpuOperations
    engines: Engines
    shapes: Callable[[Family, ModelFacts], ModelShapes]

    def load(self, which: str) -> Any:
        """Import and return a class of PaddleNLP.

        Args:
            which: Field with its name: "config_class", "model_class" or "pipeline_class".
        """
        return load_class(getattr(self, which))

    @property
    def base_prefix(self) -> str:
        """Prefix of canonical names that PaddleNLP's network without its head, and its pipeline, omit."""
        return f"{self.name}."

    def weight_shapes(self, facts: ModelFacts) -> ModelShapes:
        """Return the weights of a model of the family."""
        return self.shapes(self, facts)

    def is_tied(self, config: PretrainedConfig) -> bool:
        """Return whether the head is the embedding under PaddleNLP's configuration `config`."""
        if self.weights.tie == "configured":
            return bool(config.tie_word_embeddings)
        return self.weights.tie == "always"


def load_class(path: str) -> Any:
    """Import a class that is named as "module:attribute"."""
    module, attribute = path.split(":")
    return getattr(importlib.import_module(module), attribute)
