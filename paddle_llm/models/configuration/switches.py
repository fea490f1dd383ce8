"""Set the switches of a run in PaddleNLP's configuration: kernels, recompute, layout, dropout, sequence length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.families import Family
from paddle_llm.models.patches.shared.rms_norm import why_not_fused

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

# Fields of RunConfig that PaddleNLP's models read under the same names.
_SAME_NAME = (
    "use_flash_attention",
    "use_fused_rope",
    "recompute",
    "recompute_granularity",
    "recompute_use_reentrant",
    "no_recompute_layers",
    "pp_recompute_interval",
    "offload_recompute_inputs",
    "fuse_sequence_parallel_allreduce",
)
_KERNELS = ("use_flash_attention", "use_fused_rms_norm", "use_fused_rope")


def apply_switches(config: PretrainedConfig, run: RunConfig, layout: Layout, family: Family) -> None:
    """Set every attribute of PaddleNLP's configuration that depends on the run.

    Kernels that the device does not support are turned off; `notices` reports them.

    Args:
        config: PaddleNLP's configuration; changed in place.
        run: Configuration of the run.
        layout: Degrees of parallelism.
        family: Family of the model.
    """
    from paddlenlp.transformers.configuration_utils import LlmMetaConfig

    for name, default in LlmMetaConfig._get_defaults().items():
        setattr(config, name, default)
    for name in _SAME_NAME:
        setattr(config, name, getattr(run, name))
    config.use_fused_rms_norm = bool(run.use_fused_rms_norm)
    for name in unavailable_kernels(run, family):
        setattr(config, name, False)
    # LLaMA's fused RMSNorm reads this switch without a default. It selects another module of PaddleNLP, `fast_ln`.
    config.use_fast_layer_norm = False
    if run.no_recompute_layers and _recomputes_all_or_none(run, family):
        config.no_recompute_layers = None
    _set_layout(config, run, layout)
    if run.num_hidden_layers is not None:
        setattr(config, family.config_json.layers, run.num_hidden_layers)
    for name in ("fuse_attention_qkv", "fuse_attention_ffn"):
        if getattr(run, name) is not None and family.capabilities.fused_matrices:
            setattr(config, name, getattr(run, name))
    _set_dropout(config, run, family)
    _set_sequence_length(config, run, layout, family)
    # A cache costs memory in training; evaluation and `generate` pass use_cache=True.
    config.use_cache = False


def notices(run: RunConfig, family: Family) -> list[str]:
    """Return a line for each switch of the run that has no effect for this family or on this machine."""
    kernels = _kernels_of(family)
    lines = [f"--{name} is off: {reason}" for name, reason in unavailable_kernels(run, family).items()]
    if run.recompute and run.recompute_granularity not in family.capabilities.recompute_granularities:
        lines.append(
            f"--recompute_granularity {run.recompute_granularity} is replaced by full, the only one that {family.title} supports"
        )
    if run.recompute and run.no_recompute_layers and _recomputes_all_or_none(run, family):
        lines.append(f"--no_recompute_layers is ignored: {family.title} recomputes all layers or none")
    fused = [name for name in ("fuse_attention_qkv", "fuse_attention_ffn") if getattr(run, name)]
    if not family.capabilities.fused_matrices:
        lines += [f"--{name} is ignored: {family.title} has no fused matrices" for name in fused]
    without = [name for name in _KERNELS if getattr(run, name) and name not in kernels]
    lines += [f"--{name} is off: {family.title} has no such kernel in PaddleNLP" for name in without]
    if run.recompute and run.pp_recompute_interval != 1:
        lines.append(
            "--pp_recompute_interval is ignored: PaddleNLP's pipelines do not read it. Use --no_recompute_layers."
        )
    return lines


def _recomputes_all_or_none(run: RunConfig, family: Family) -> bool:
    """Return whether `--no_recompute_layers` has no effect."""
    in_pipeline = run.pipeline_parallel_degree > 1
    return not family.capabilities.skips_layers(in_pipeline=in_pipeline, part=run.recompute_granularity)


def unavailable_kernels(run: RunConfig, family: Family) -> dict[str, str]:
    """Return the requested kernels that the family has but this machine does not support, with the reasons."""
    import paddle

    requested = [name for name in _kernels_of(family) if getattr(run, name)]
    on_gpu = paddle.device.get_device().startswith("gpu")
    reasons = {
        "use_flash_attention": "" if on_gpu else "it needs a GPU; the plain attention is equivalent",
        "use_fused_rope": "" if on_gpu else "it needs a GPU; the plain rotary embedding is equivalent",
    }
    if "use_fused_rms_norm" in requested:
        reason = why_not_fused()
        reasons["use_fused_rms_norm"] = f"{reason}; the plain RMSNorm is equivalent" if reason else ""
    return {name: reasons[name] for name in requested if reasons[name]}


def _kernels_of(family: Family) -> tuple[str, ...]:
    """Return the switches that the family's layers read."""
    has = {
        "use_flash_attention": family.capabilities.flash_attention,
        "use_fused_rms_norm": family.capabilities.fused_rms_norm,
        "use_fused_rope": family.capabilities.fused_rope,
    }
    return tuple(name for name in _KERNELS if has[name])


def report_notices(run: RunConfig, family: Family) -> None:
    """Print the notices of a run."""
    for line in notices(run, family):
        say(line)


def _set_layout(config: PretrainedConfig, run: RunConfig, layout: Layout) -> None:
    config.tensor_parallel_degree = layout.tensor
    config.tensor_parallel_rank = 0
    config.tensor_parallel_output = True
    config.pipeline_parallel_degree = layout.pipeline
    config.virtual_pp_degree = layout.virtual_stages
    config.sequence_parallel = layout.sequence_parallel and layout.tensor > 1
    if layout.tensor > 1:
        from paddle.distributed import fleet

        config.tensor_parallel_rank = fleet.get_hybrid_communicate_group().get_model_parallel_rank()


def _set_dropout(config: PretrainedConfig, run: RunConfig, family: Family) -> None:
    keys = family.config_json.dropout
    if keys is None:
        requested = [n for n in ("hidden_dropout_prob", "attention_probs_dropout_prob") if getattr(run, n)]
        if requested:
            raise UserError(
                f"{requested[0]} = {getattr(run, requested[0])}: PaddleNLP's {family.title} has no dropout. Omit it."
            )
        return
    values = (run.hidden_dropout_prob, run.attention_probs_dropout_prob)
    for value, names in zip(values, (keys.hidden, keys.attention), strict=True):
        for name in names if value is not None else ():
            setattr(config, name, value)


def _set_sequence_length(config: PretrainedConfig, run: RunConfig, layout: Layout, family: Family) -> None:
    """Set the length of this run's rows; sequence parallelism flattens [B, S] and reads S from the configuration."""
    if family.config_json.sequence_length == "seq_length":
        config.seq_length = run.max_seq_length
    elif family.config_json.sequence_length == "position table" and config.sequence_parallel:
        # The same field is the size of its position table, which is cut to the sequence length of this run.
        config.folder_sequence_length = config.max_sequence_length
        config.max_sequence_length = run.max_seq_length
