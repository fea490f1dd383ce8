"""The gloo backend for CPU ranks: every layout that runs over NCCL runs over this, through the same trainer code.

Call `install_gloo_backend()` in a job whose device is the CPU, before fleet or `init_parallel_env`. It fills what
paddlepaddle 3.3.1 lacks there; each piece says what that is. Nothing is patched in a job on GPUs or in one process.

Order of calls in a rank: `prepare_host()` (environment), import paddle, `install_gloo_backend()`, then fleet.
"""

from __future__ import annotations

import os

from paddle_llm.parallel.gloo.interface import choose_interface

_installed = False


def install_gloo_backend() -> None:
    """Make collectives, tensor-parallel operators and fleet work on CPU ranks. May be called twice.

    Raises:
        RuntimeError: when the parallel environment stands already: its groups would be half patched.
    """
    global _installed
    if _installed:
        return
    import paddle
    from paddle.base import core

    if paddle.distributed.is_initialized():
        raise RuntimeError(
            "install_gloo_backend() comes before paddle.distributed.init_parallel_env() and fleet.init()"
        )
    from paddle_llm.parallel.gloo.collectives import METHODS
    from paddle_llm.parallel.gloo.fleet import patch_fleet
    from paddle_llm.parallel.gloo.ops import OPERATORS
    from paddle_llm.parallel.gloo.rendezvous import create_group

    choose_interface()
    # "auto", which the launcher passes on, takes an older path on CPUs that knows no groups.
    os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
    paddle.set_device("cpu")
    for name, method in METHODS.items():
        setattr(core.ProcessGroupGloo, name, method)
    core.ProcessGroupGloo.create = staticmethod(create_group)
    for name, operator in OPERATORS.items():
        setattr(paddle._C_ops, name, operator)
    patch_fleet()
    _installed = True


def is_installed() -> bool:
    """Whether this process runs on the patched backend."""
    return _installed
