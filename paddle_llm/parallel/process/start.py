"""Start the process of a rank. The order of the calls matters; the two functions below are its documentation."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

from paddle_llm.config.layout import Layout
from paddle_llm.core.upstream import replace
from paddle_llm.parallel.gloo.backend import install_gloo_backend
from paddle_llm.parallel.process.environment import import_paddle, prepare_host
from paddle_llm.parallel.process.exit_code import keep_exit_code
from paddle_llm.parallel.process.failure_detection import start_on_gpus

_flags_hidden = False


def start_process(
    device: str,
    ranks: int = 1,
    *,
    cpu_threads: int | None = None,
    deterministic: bool = False,
    report: Callable[[str], object] | None = None,
) -> None:
    """Prepare this process to compute on a device; fleet is not initialised yet. May be called more than once.

    Args:
        device: "cpu" or "gpu".
        ranks: Number of processes of the job.
        cpu_threads: Threads of this rank on a CPU; by default its share of the cores.
        deterministic: Whether GPU kernels must give the same bits in every run.
        report: Function that gets each line about the environment that was set; by default nothing is reported.
    """
    # 1. The environment. Math libraries, CUDA and NCCL read it when Paddle is imported.
    if "paddle" not in sys.modules:
        for line in prepare_host(device, cpu_threads, deterministic):
            if report is not None:
                report(line)
    # 2. Paddle itself, without its warning about the number of threads that step 1 has set.
    import_paddle()
    import paddle
    from paddlenlp.utils.log import logger

    # 3. PaddleNLP logs every file that it reads.
    logger.set_level("ERROR")
    # 4. The device, before anything allocates memory on the default one.
    paddle.set_device(device)
    if ranks == 1:
        return
    # 5. The exit code. Exit handlers run in reverse order, so this one is registered before those of gloo and the
    #    failure detection, which still talk to other ranks.
    keep_exit_code()
    # 6. The first broadcast of weights. Fleet's wrappers look the function up when they wrap the model.
    from paddle_llm.parallel.zero.first_broadcast import broadcast_weight_by_weight

    broadcast_weight_by_weight()
    # 7. Four lines of each rank about a flag that Paddle has set itself.
    _hide_modified_flags()
    # 8. Collectives on a CPU. Groups that exist already would have only half of them.
    if device == "cpu":
        install_gloo_backend()


def start_groups(device: str, layout: Layout) -> None:
    """Create the process groups of a layout and watch for lost ranks; after `start_process`. May be called twice.

    Training does not call this: PaddleNLP's TrainingArguments initialise fleet (`training/arguments.py`).
    """
    import paddle.distributed as dist
    from paddle.distributed import fleet

    if dist.is_initialized():
        return
    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {
        "dp_degree": layout.data,
        "mp_degree": layout.tensor,
        "pp_degree": layout.pipeline,
        "sharding_degree": layout.sharding,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Current global rank")
        fleet.init(is_collective=True, strategy=strategy, log_level="WARNING")
    # On a CPU the first group that gloo creates starts the failure detection.
    if device != "cpu":
        start_on_gpus()


def _hide_modified_flags() -> None:
    """Keep `init_parallel_env` from printing flags; config/ reports those that the user has set."""
    import paddle

    global _flags_hidden
    if not _flags_hidden:
        why = "It prints four lines on every rank about a flag that Paddle sets itself."
        replace(paddle.distributed.parallel, "_print_modified_flags", lambda flags: None, why)
        _flags_hidden = True
