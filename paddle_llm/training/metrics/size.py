"""The size of a job in one line: parameters, and tokens or samples per step."""

from __future__ import annotations

from paddle_llm.config.reader import Resolved
from paddle_llm.models.protocols import LanguageModel
from paddle_llm.planner.flops import parameter_count


def describe_size(model: LanguageModel, resolved: Resolved, global_batch: int) -> str:
    """Return the line that is reported before the first step.

    Args:
        model: Network of this rank with its adapter. If a part of it is trained, the method reports how many parameters.
        resolved: Configuration of the job.
        global_batch: Samples per optimizer step, over all ranks.
    """
    config = resolved.config
    parts = []
    if resolved.facts is not None and not any(parameter.stop_gradient for parameter in model.parameters()):
        parts.append(f"parameters: {parameter_count(resolved.facts):,}, all trained")
    if resolved.entry == "pretrain":
        tokens, length = global_batch * config.max_seq_length, config.max_seq_length
        parts.append(f"tokens per step: {tokens:,} ({global_batch} samples of {length:,})")
    else:
        parts.append(f"samples per step: {global_batch}, of at most {config.max_length:,} tokens")
    return "; ".join(parts)
