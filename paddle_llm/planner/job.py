"""The input of the planner: everything that the memory and the step time of a training depend on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from paddle_llm.config.layout import Layout
from paddle_llm.config.methods import CHOICES, chosen
from paddle_llm.config.reader import Resolved
from paddle_llm.config.run_config import RunConfig
from paddle_llm.families import Family
from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.shape import find_family

Dtype = Literal["float32", "bfloat16", "float16"]
Part = Literal["none", "full", "full_attn", "core_attn"]
BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Method:
    """Which weights are trained, and which are added.

    Attributes:
        name: Key of `config.methods.METHODS`.
        rank: Rank of LoRA; the initial rank of AdaLoRA.
        targets: Layers with low-rank matrices, as in `lora_target_modules`.
        dropout: Dropout before the low-rank matrices.
        dora: Whether the magnitude of each output is trained too.
        tokens: Length of a trained prefix or prompt.
        prefix_projection: Whether a small network computes the prefix.
        adapter_size: Width of a bottleneck adapter.
        last_layers: Number of last layers that are trained (freezing); None for no such choice.
        trainable_modules: Patterns of weights that are trained (freezing).
        modules_to_save: Layers that are trained completely beside an adapter.
    """

    name: str = "full"
    rank: int = 8
    targets: tuple[str, ...] = ("all-linear",)
    dropout: float = 0.0
    dora: bool = False
    tokens: int = 0
    prefix_projection: bool = False
    adapter_size: int = 64
    last_layers: int | None = None
    trainable_modules: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: RunConfig, entry: str) -> Method:
        """Return the method of a config; pretraining trains all weights."""
        if entry == "pretrain":
            return cls()
        name = next(iter(chosen({field: getattr(config, field) for field in CHOICES})), "full")
        tokens = {"prefix": config.num_prefix_tokens, "prompt": config.num_prompt_tokens}.get(name, 0)
        adalora_rank = config.adalora_init_rank or -(-3 * config.lora_rank // 2)
        return cls(
            name=name,
            rank=adalora_rank if name == "adalora" else config.lora_rank,
            targets=tuple(config.lora_target_modules),
            dropout=config.lora_dropout,
            dora=config.dora,
            tokens=tokens,
            prefix_projection=config.prefix_projection,
            adapter_size=config.adapter_size,
            last_layers=config.freeze_layers,
            trainable_modules=tuple(config.trainable_modules or ()),
            modules_to_save=tuple(config.modules_to_save or ()),
        )


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Types of the numbers of a training.

    Attributes:
        weights: Type of the weights that the network multiplies with.
        compute: Type of matrix products and of the activations between them.
        gradients: Type in which gradients are accumulated and reduced.
        master_weights: Whether the optimizer keeps an fp32 copy of 16-bit weights.
        moments: Type of AdamW's two moments.
    """

    weights: Dtype = "float32"
    compute: Dtype = "float32"
    gradients: Dtype = "float32"
    master_weights: bool = False
    moments: Dtype = "float32"

    @classmethod
    def of(cls, config: RunConfig) -> Precision:
        """Return the types of a config: O1 computes in 16 bits with fp32 weights, O2 stores 16-bit weights too."""
        low: Dtype = "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"
        if low == "float32" or config.fp16_opt_level == "O0":
            return cls()
        if config.fp16_opt_level == "O1":
            return cls(compute=low)
        return cls(
            weights=low,
            compute=low,
            gradients="float32" if config.amp_master_grad else low,
            master_weights=True,
            moments=low if config.optim == "adamw_16bit_moment" else "float32",
        )


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """What the backward pass computes again instead of keeping it.

    Attributes:
        part: Part of a layer: nothing, all of it, its attention block, or its attention product.
        kept_layers: Indices of layers that are not recomputed.
        offload: Whether the inputs of recomputed layers are kept in host memory.
    """

    part: Part = "none"
    kept_layers: frozenset[int] = frozenset()
    offload: bool = False

    @classmethod
    def of(cls, config: RunConfig, layout: Layout, family: Family) -> Recompute:
        """Return the recompute settings of a config, as far as the family's network follows them."""
        if not config.recompute:
            return cls()
        part: Part = config.recompute_granularity
        if part not in family.capabilities.recompute_granularities:
            part = "full"
        skips = family.capabilities.skips_layers(in_pipeline=layout.pipeline > 1, part=config.recompute_granularity)
        return cls(
            part=part,
            kept_layers=frozenset(config.no_recompute_layers or ()) if skips else frozenset(),
            offload=config.offload_recompute_inputs and config.device != "cpu",
        )


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Which implementation computes the parts of a layer.

    Attributes:
        device: "gpu" or "cpu".
        flash_attention: Whether the scores of attention are never stored (flash attention on a GPU).
        fused_rms_norm: Whether one kernel computes RMSNorm.
        fused_rope: Whether one kernel applies rotary positions.
        fused_qkv: Whether query, key and value are one matrix in a family that has both forms.
        fused_gate_up: Whether gate and up projection are one matrix in such a family.
    """

    device: Literal["gpu", "cpu"] = "gpu"
    flash_attention: bool = True
    fused_rms_norm: bool = False
    fused_rope: bool = False
    fused_qkv: bool = False
    fused_gate_up: bool = False

    @classmethod
    def of(cls, config: RunConfig, facts: ModelFacts, family: Family) -> Kernels:
        """Return the kernels of a resolved config that the family's network and the device have."""
        has, on_gpu = family.capabilities, config.device != "cpu"
        return cls(
            device="gpu" if on_gpu else "cpu",
            flash_attention=config.use_flash_attention and has.flash_attention and on_gpu,
            fused_rms_norm=bool(config.use_fused_rms_norm) and has.fused_rms_norm,
            fused_rope=config.use_fused_rope and has.fused_rope and on_gpu,
            fused_qkv=has.fused_matrices and _given(config.fuse_attention_qkv, facts.raw.get("fuse_attention_qkv")),
            fused_gate_up=has.fused_matrices and _given(config.fuse_attention_ffn, facts.raw.get("fuse_attention_ffn")),
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: model, method, batch, layout and implementation. Frozen and hashable.

    Attributes:
        model: Shape of the model.
        layout: Degrees of parallelism, sharding stage, virtual stages and sequence parallelism.
        seq_length: Tokens per row.
        micro_batch: Rows per rank and micro-batch.
        accumulation: Micro-batches per optimizer step; with a pipeline, its micro-batches.
        method: Which weights are trained.
        precision: Types of weights, gradients and optimizer states.
        recompute: What is recomputed.
        kernels: Implementation of the layers.
        hidden_dropout: Dropout on hidden states.
        attention_dropout: Dropout on attention probabilities.
        clips_gradients: Whether gradients are clipped to a norm.
        offload_optimizer: Whether optimizer states are in host memory between steps.
        release_gradients: Whether gradients are freed after each step.
        bucket_bytes: Size of a bucket of gradients; None for the default of the sharding stage.
        rank_order: Order of the ranks, as in `hybrid_parallel_topo_order`.
        ranks_per_machine: Ranks that share the fast links of one machine.
    """

    model: ModelFacts
    layout: Layout
    seq_length: int
    micro_batch: int = 1
    accumulation: int = 1
    method: Method = field(default_factory=Method)
    precision: Precision = field(default_factory=Precision)
    recompute: Recompute = field(default_factory=Recompute)
    kernels: Kernels = field(default_factory=Kernels)
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    clips_gradients: bool = True
    offload_optimizer: bool = False
    release_gradients: bool = False
    bucket_bytes: int | None = None
    rank_order: Literal["pp_first", "sharding_first"] = "pp_first"
    ranks_per_machine: int = 8

    @property
    def global_batch(self) -> int:
        """Rows per optimizer step over all ranks."""
        return self.micro_batch * self.accumulation * self.layout.data_world_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step over all ranks."""
        return self.global_batch * self.seq_length


def job_of(resolved: Resolved, *, ranks_per_machine: int = 8) -> Job:
    """Return the job that a resolved config describes.

    Args:
        resolved: Checked config with the shape of its model.
        ranks_per_machine: Ranks on one machine.

    Raises:
        ValueError: If the shape of the model is not known, because its config.json is not on this machine.
    """
    config, facts = resolved.config, resolved.facts
    if facts is None:
        raise ValueError(f"the shape of {config.model_name_or_path} is not known")
    family = find_family(facts)
    hidden_dropout, attention_dropout = dropout_rates(config, facts, family)
    return Job(
        model=facts,
        layout=resolved.layout,
        seq_length=row_length(config, resolved.entry),
        micro_batch=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        method=Method.of(config, resolved.entry),
        precision=Precision.of(config),
        recompute=Recompute.of(config, resolved.layout, family),
        kernels=Kernels.of(config, facts, family),
        hidden_dropout=hidden_dropout,
        attention_dropout=attention_dropout,
        clips_gradients=config.max_grad_norm > 0,
        offload_optimizer=config.offload_optim or config.sharding_offload,
        release_gradients=config.release_grads,
        bucket_bytes=config.sharding_comm_buffer_size_MB * 2**20 if config.sharding_comm_buffer_size_MB > 0 else None,
        rank_order=config.hybrid_parallel_topo_order,
        ranks_per_machine=ranks_per_machine,
    )


def _given(value: bool | None, default: object) -> bool:
    return bool(default if value is None else value)


def row_length(config: RunConfig, entry: str) -> int:
    """Return the longest row of a training in tokens: a packed row, or in fine-tuning without packing one sample."""
    return config.max_seq_length if entry == "pretrain" or config.zero_padding else config.max_length


def dropout_rates(config: RunConfig, facts: ModelFacts, family: Family) -> tuple[float, float]:
    """Return the dropout of hidden states and of attention probabilities: the given rates, else those of config.json.

    Args:
        config: Config of the run.
        facts: Shape of the model.
        family: Family of the model.
    """
    keys = family.config_json.dropout
    if keys is None:
        return 0.0, 0.0
    values = dict(facts.raw)
    family.config_json.translate(values, facts.raw, [])
    rates = []
    for given, names, default in (
        (config.hidden_dropout_prob, keys.hidden, keys.default_hidden),
        (config.attention_probs_dropout_prob, keys.attention, keys.default_attention),
    ):
        written = [values[name] for name in names if values.get(name) is not None]
        rates.append(float(given if given is not None else max(written, default=default)))
    return rates[0], rates[1]
