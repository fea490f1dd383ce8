"""Install the gloo backend for CPU ranks. Every layout that runs over NCCL runs over it with the same trainer code.

`parallel/process/start.py` calls `install_gloo_backend` in a job with several ranks on CPUs. The backend adds what
paddlepaddle 3.3.1 lacks on a CPU; each module says what that is. Nothing is patched in a job on GPUs or in one process.
"""

from __future__ import annotations

import os

from paddle_llm.core.upstream import replace
from paddle_llm.parallel.gloo.interface import choose_interface

_installed = False


def install_gloo_backend() -> None:
    """Make collectives, tensor-parallel operators and fleet work on CPU ranks. May be called twice.

    Raises:
        RuntimeError: If the parallel environment is initialised already: its groups would lack the methods set here.
    """
    global _installed
    if _installed:
        return
    import paddle
    from paddle.base import core

    if paddle.distributed.is_initialized():
        raise RuntimeError(
            "install_gloo_backend() must run before paddle.distributed.init_parallel_env() and fleet.init()"
        )
    from paddle_llm.parallel.gloo.fleet import patch_fleet
    from paddle_llm.parallel.gloo.methods import METHODS
    from paddle_llm.parallel.gloo.ops import OPERATORS
    from paddle_llm.parallel.gloo.rendezvous import create_group

    choose_interface()
    # "auto", which the launcher passes on, selects an older implementation on CPUs that does not support groups.
    os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
    paddle.set_device("cpu")
    for name, method in METHODS.items():
        replace(core.ProcessGroupGloo, name, method, "Gloo's group lacks it, or some types, averages or groups in it.")
    replace(
        core.ProcessGroupGloo,
        "create",
        staticmethod(create_group),
        "Groups that are created at once may never connect.",
    )
    for name, operator in OPERATORS.items():
        replace(paddle._C_ops, name, operator, "It has no CPU kernel.")
    patch_fleet()
    _installed = True


def is_installed() -> bool:
    """Return whether this process uses the gloo backend."""
    return _installed
