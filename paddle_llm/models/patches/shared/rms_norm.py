"""The fused RMSNorm of custom_ops/ (`fused_ln`) in the networks.

PaddleNLP's LLaMA and Qwen2 import `fused_ln` if `config.use_fused_rms_norm` is set; this module adds it to ChatGLM2.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# Source of `fused_ln` in a clone of the repository, where it may not be installed.
_CUSTOM_OPS = Path(__file__).resolve().parents[4] / "custom_ops"
_SWITCH = "uses_fused_rms_norm"


def why_not_fused() -> str:
    """Return why this job's RMSNorm cannot be fused; "" if it can. The first call builds the operator.

    Collective over all ranks: all use the operator or none does. On a GPU without the operator, `fused_ln` uses
    Paddle's fused RMSNorm if that runs. On a CPU the plain RMSNorm is faster than Paddle's.
    """
    import paddle

    device = paddle.device.get_device().split(":")[0]
    reason, has_fallback = _why_not_on_this_rank(device)
    reasons = _on_all_ranks(reason)
    lacking = [rank for rank, theirs in enumerate(reasons) if theirs]
    if not lacking or (len(lacking) == len(reasons) and has_fallback):
        return ""
    if len(reasons) == 1:
        return reason
    who = "no rank has it" if len(lacking) == len(reasons) else f"{len(lacking)} of {len(reasons)} ranks lack it"
    return f"{who} (rank {lacking[0]}: {reasons[lacking[0]]})"


def _why_not_on_this_rank(device: str) -> tuple[str, bool]:
    """Return why this rank lacks the operator ("" if it has it), and whether Paddle's fused RMSNorm is used instead."""
    module = _fused_ln()
    if module is None:
        return "the module fused_ln is neither installed nor in this clone", False
    if not hasattr(module, "why_not"):
        if device == "gpu":
            return "", True
        file = getattr(module, "__file__", None)
        return f"the installed module fused_ln ({file}) is not the one of this project and runs on GPUs only", False
    reason = str(module.why_not(device))
    return reason, bool(reason) and device == "gpu" and module.fallback.paddle_fused_runs()


def _on_all_ranks(mine: str) -> list[str]:
    import paddle.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [mine]
    found: list[str] = []
    dist.all_gather_object(found, mine)
    return found


def _fused_ln() -> ModuleType | None:
    for folder in ("", str(_CUSTOM_OPS)):
        if folder and folder not in sys.path:
            sys.path.append(folder)
        try:
            module = importlib.import_module("fused_ln")
        except ImportError:
            continue
        _log_plainly()
        return module
    return None


def _log_plainly() -> None:
    """Log the lines of `fused_ln` without the format of Paddle's handler, which would otherwise receive them."""
    log = logging.getLogger("fused_ln")
    if log.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


# ---- ChatGLM2: its RMSNorm has no fused branch and does not store the configuration.


def with_fused_norm(plain: Any) -> Any:
    """Return ChatGLM2's RMSNorm with a branch for the fused one."""

    def forward(self: Any, hidden_states: Any) -> Any:
        if not is_fused(self):
            return plain(self, hidden_states)
        import fused_ln

        return fused_ln.fused_rms_norm(hidden_states, self.weight, self.epsilon)[0]

    return forward


def use_fused_norm(model: Any) -> None:
    """Use the fused operator in the RMSNorms of a ChatGLM2 network."""
    from paddlenlp.transformers.chatglm_v2.modeling import RMSNorm

    for layer in model.sublayers():
        if isinstance(layer, RMSNorm):
            setattr(layer, _SWITCH, True)


def is_fused(norm: Any) -> bool:
    """Return whether a norm of ChatGLM2 uses the fused operator."""
    return getattr(norm, _SWITCH, False)
