"""Cases of this folder, and functions that run them on a CPU and on a GPU alike.

Settings that a CPU does not support (16 bits, flash attention, fused kernels, offload) are requested on both devices; on a CPU
the product ignores them. If `device` is "gpu", a test asserts that they have their effect.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.parallel.process.determinism import DETERMINISTIC
from paddle_llm.rehearse.case import Case
from paddle_llm.rehearse.ranks import run_ranks
from tests.gpu import on_ranks
from tests.gpu.on_ranks import Trained
from tests.rehearse.cases import make_case

# Comparisons in 32 bits use float32. TF32 rounds the factors of a product to 10 bits.
ENVIRONMENT = {"NVIDIA_TF32_OVERRIDE": "0"}
BF16 = {"bf16": True, "fp16_opt_level": "O2", "amp_master_grad": True}
FP16 = {"fp16": True, "fp16_opt_level": "O2", "amp_master_grad": True}
# Relative, for each loss; not measured yet: bfloat16 rounds to 8 bits (2^-9 = 0.2%), which a mean over tokens averages.
HALF_LIMIT = 0.01
TIMEOUT = 300.0
# Paddle's place of optimizer states without and with --offload_optim.
STATE_PLACES = {"cpu": ("Place(cpu)", "Place(cpu)"), "gpu": ("Place(gpu:0)", "Place(gpu_pinned)")}


def case_on(device: str, folder: Path, layout: Layout | None = None, **settings: Any) -> Case:
    """Return a case without fused kernels, which is the default on a GPU."""
    return make_case(folder, layout or Layout(), **{"device": device, "use_fused_rms_norm": False, **settings})


def family_case(device: str, folder: Path, family: str, **settings: Any) -> Case:
    """Return a case of a family. Samples of ChatGLM-6B end in marks, which the random tokens of pretraining lack."""
    entry = "finetune" if family == "chatglm" else "pretrain"
    return case_on(device, folder, family=family, **{"entry": entry, **settings})


def with_settings(case: Case, **settings: Any) -> Case:
    return replace(case, config=case.config.model_copy(update=settings))


def train(
    case: Case,
    output: Path | None = None,
    resume: Path | None = None,
    *,
    card: int | None = None,
    **settings: Any,
) -> list[Trained]:
    """Train a case on the ranks of its layout, on deterministic kernels.

    Args:
        output, resume, settings: See `on_ranks.train`.
        card: Number of the only rank's card; None: the rank's own.
    """
    device = case.config.device or "cpu"
    chosen = {} if card is None else {"FLAGS_selected_gpus": str(card)}
    return run_ranks(
        on_ranks.train,
        case.layout.world_size,
        case,
        output,
        resume,
        settings,
        timeout=TIMEOUT,
        quiet=True,
        device=device,
        env={**ENVIRONMENT, **DETERMINISTIC, **chosen},
    )


def one(case: Case, **settings: Any) -> Trained:
    """Train a case in one process."""
    (trained,) = train(case, **settings)
    return trained


def assert_close(found: Trained, expected: Trained, limit: float) -> None:
    """Assert that losses equal those of `expected` within `limit`, and gradient norms within five times that."""
    assert len(found.losses) == len(expected.losses) > 0
    np.testing.assert_allclose(found.losses, expected.losses, rtol=limit)
    np.testing.assert_allclose(found.norms, expected.norms, rtol=5 * limit)
