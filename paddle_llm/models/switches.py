"""This run's switches on PaddleNLP's configuration of a model: kernels, recompute, layout, dropout, sequence length."""

from __future__ import annotations

import importlib.util
from typing import Any

from paddle_llm.config.console import say
from paddle_llm.config.errors import UserError
from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig
from paddle_llm.models.registry import Family

# Fields of RunConfig that PaddleNLP's models read under the same name.
_SAME_NAME = (
    "use_flash_attention",
    "use_fused_rms_norm",
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


def apply_switches(config: Any, run: RunConfig, layout: Layout, family: Family) -> None:
    """Set what this run asks for on `config` (PaddleNLP's, of the model), with every attribute its models read.

    Kernels that the device does not have are left out; `notices` says which.
    """
    from paddlenlp.transformers.configuration_utils import LlmMetaConfig

    for name, default in LlmMetaConfig._get_defaults().items():
        setattr(config, name, default)
    for name in _SAME_NAME:
        setattr(config, name, getattr(run, name))
    for name in unavailable_kernels(run):
        setattr(config, name, False)
    # Read by LLaMA's fused RMSNorm without a default; PaddleNLP's own fast layer norm is not what is asked for.
    config.use_fast_layer_norm = False
    _set_layout(config, run, layout)
    if run.num_hidden_layers is not None:
        setattr(config, "n_layer" if family.name == "bloom" else "num_hidden_layers", run.num_hidden_layers)
    for name in ("fuse_attention_qkv", "fuse_attention_ffn"):
        if getattr(run, name) is not None and family.name == "llama":
            setattr(config, name, getattr(run, name))
    _set_dropout(config, run, family)
    _set_sequence_length(config, run, layout, family)
    # Keeping keys and values costs memory in training; evaluation and `generate` ask for them where they need them.
    config.use_cache = False


def notices(run: RunConfig, family: Family) -> list[str]:
    """One line for each switch that this family or machine cannot honour."""
    reasons = {
        "use_flash_attention": "needs a GPU; the plain attention computes the same",
        "use_fused_rms_norm": "needs a GPU and the module fused_ln; the plain RMSNorm computes the same",
        "use_fused_rope": "needs a GPU; the plain rotary embedding computes the same",
    }
    missing = [name for name in unavailable_kernels(run) if family.name == "llama" or name == "use_flash_attention"]
    lines = [f"--{name} is off: it {reasons[name]}" for name in missing]
    if run.recompute and run.recompute_granularity not in family.abilities.recompute_granularities:
        lines.append(
            f"--recompute_granularity {run.recompute_granularity} is full for {family.title}: it knows no other"
        )
    all_or_none = family.name == "chatglm" or (family.name == "bloom" and run.pipeline_parallel_degree <= 1)
    if run.recompute and run.no_recompute_layers and all_or_none:
        lines.append(f"--no_recompute_layers is off: {family.title} recomputes all layers or none")
    fused = [name for name in ("fuse_attention_qkv", "fuse_attention_ffn") if getattr(run, name)]
    if family.name != "llama":
        lines += [f"--{name} is off: {family.title} keeps its own layout of weights" for name in fused]
        kernels = [name for name in ("use_fused_rope", "use_fused_rms_norm") if getattr(run, name)]
        lines += [f"--{name} is off: {family.title} has no such kernel in PaddleNLP" for name in kernels]
    if run.recompute and run.pp_recompute_interval != 1:
        lines.append("--pp_recompute_interval is off: PaddleNLP's pipelines do not read it; use --no_recompute_layers")
    return lines


def unavailable_kernels(run: RunConfig) -> list[str]:
    """The kernel switches that are asked for and that this machine does not have."""
    import paddle

    on_gpu = paddle.device.get_device().startswith("gpu")
    missing = [name for name in _KERNELS if getattr(run, name) and not on_gpu]
    if run.use_fused_rms_norm and on_gpu and importlib.util.find_spec("fused_ln") is None:
        missing.append("use_fused_rms_norm")
    return missing


def say_notices(run: RunConfig, family: Family) -> None:
    for line in notices(run, family):
        say(line)


def _set_layout(config: Any, run: RunConfig, layout: Layout) -> None:
    config.tensor_parallel_degree = layout.tensor
    config.tensor_parallel_rank = 0
    config.tensor_parallel_output = True
    config.pipeline_parallel_degree = layout.pipeline
    config.virtual_pp_degree = layout.virtual_stages
    config.sequence_parallel = layout.sequence_parallel and layout.tensor > 1
    if layout.tensor > 1:
        from paddle.distributed import fleet

        config.tensor_parallel_rank = fleet.get_hybrid_communicate_group().get_model_parallel_rank()


def _set_dropout(config: Any, run: RunConfig, family: Family) -> None:
    if not family.abilities.dropout:
        asked = [n for n in ("hidden_dropout_prob", "attention_probs_dropout_prob") if getattr(run, n)]
        if asked:
            raise UserError(
                f"--{asked[0]} {getattr(run, asked[0])}: {family.title} has no dropout in PaddleNLP; leave it out"
            )
        return
    if run.hidden_dropout_prob is not None:
        config.hidden_dropout = run.hidden_dropout_prob
    if run.attention_probs_dropout_prob is not None:
        config.attention_dropout = run.attention_probs_dropout_prob


def _set_sequence_length(config: Any, run: RunConfig, layout: Layout, family: Family) -> None:
    """Sequence parallelism flattens [B, S] and reads S from the configuration to unfold it."""
    if family.name == "llama":
        config.seq_length = run.max_seq_length
    elif family.name == "chatglm_v2" and config.sequence_parallel:
        # The same number is the size of its table of positions, which is then cut to this run's sequences.
        config.folder_sequence_length = config.max_sequence_length
        config.max_sequence_length = run.max_seq_length
