"""Each patch is still needed. If Paddle has fixed a fault, its test fails, and the docstring names the code to remove."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys

import pytest

from paddle_llm.rehearse.ranks import RankError, run_ranks
from tests.parallel import upstream_gaps


def test_methods_of_gloo_groups_are_still_missing():
    """`gloo.methods.METHODS`, and AVG in `gloo.dtypes`."""
    assert run_ranks(upstream_gaps.missing_methods, 2) == [[], []]


def test_flags_that_paddle_sets_itself_are_still_printed():
    """`process.start._hide_modified_flags`."""
    code = "import paddle.distributed.parallel as p; p._print_modified_flags(p._get_modified_flags())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "FLAGS_enable_pir_in_executor" in done.stderr


def test_float16_sums_are_still_wrong():
    """`gloo.dtypes.WIDER`: 1 + 1 = inf."""
    assert run_ranks(upstream_gaps.float16_sum, 2) == [float("inf")] * 2


def test_an_int16_tensor_still_ends_the_process():
    """`gloo.dtypes.as_movable`. Paddle exits with 255; a rank that notices the end of the other one first is aborted."""
    with pytest.raises(RankError) as failure:
        run_ranks(upstream_gaps.int16_broadcast, 2)
    codes = [outcome.exit_code for outcome in failure.value.outcomes]
    assert 255 in codes and set(codes) <= {255, -signal.SIGABRT}


def test_sends_are_still_matched_by_number():
    """`gloo.p2p`; and `gloo.timeout`: the timeout is still 30 s, at the same address."""
    assert run_ranks(upstream_gaps.p2p_chain, 3)[2] == "never arrived"


def test_batches_still_do_not_collect():
    """`gloo.channels.Batch`."""
    assert run_ranks(upstream_gaps.batch_of_one_direction, 2)[1] is False


def test_rendezvous_keys_still_do_not_contain_the_group():
    """`gloo.rendezvous`."""
    assert run_ranks(upstream_gaps.keys_without_a_group, 2) == [[True, True]] * 2


def operator(name: str) -> list[float]:
    import paddle

    paddle.distributed.init_parallel_env()
    rank = paddle.distributed.get_rank()
    x, label = paddle.ones([2, 4]), paddle.zeros([2, 1], dtype="int64")
    arguments = {
        "c_identity": (x, 0, True, True),
        "c_split": (x, rank, 2, 0, True),
        "c_concat": (x, rank, 2, 0, True, True),
        "c_softmax_with_cross_entropy": (x, label, -100, 0, rank, 2),
    }
    return paddle.utils.flatten(getattr(paddle._C_ops, name)(*arguments[name]))[0].tolist()


@pytest.mark.parametrize("name", ["c_identity", "c_split", "c_concat", "c_softmax_with_cross_entropy"])
def test_operators_are_still_missing(name):
    """`gloo.ops.OPERATORS`."""
    with pytest.raises(RankError, match=f"Do not support {name} for cpu kernel"):
        run_ranks(operator, 2, name)


def refusals() -> list[str]:
    import paddle
    from paddle.base import core
    from paddle.distributed.communication.reduce import is_avg_reduce_op_supported
    from paddle.distributed.fleet.layers.mpu import mp_ops
    from paddle.distributed.fleet.utils import hybrid_parallel_util, tensor_fusion_helper

    still = {
        "broadcast_input_data": upstream_gaps.refuses(
            lambda: hybrid_parallel_util.broadcast_input_data(None, paddle.ones([1]))
        ),
        "ParallelEnv.device_id": upstream_gaps.refuses(lambda: paddle.distributed.ParallelEnv().device_id),
        "tensor_fusion_helper.alignment": "cpu" not in tensor_fusion_helper.alignment,
        "nccl_version": not hasattr(core, "nccl_version"),
        "is_avg_reduce_op_supported": not is_avg_reduce_op_supported(),
        "device.synchronize": upstream_gaps.refuses(paddle.device.synchronize),
        "c_split_eager.backward": "out_shape[0]" in inspect.getsource(mp_ops.c_split_eager.backward),
    }
    return [name for name, needed in still.items() if not needed]


def test_fleet_still_refuses_gloo():
    """`gloo.fleet.patch_fleet`."""
    assert run_ranks(refusals, 1) == [[]]


def test_shared_weights_are_still_not_marked():
    """`count_shared_weights_once`: names of parameters are compared with attributes' names."""
    source = run_ranks(shared_marks_source, 1)[0]
    assert "param.name in comm" in source


def shared_marks_source() -> str:
    from paddle.distributed.fleet.meta_parallel.parallel_layers.pp_layers import PipelineLayer

    return inspect.getsource(PipelineLayer._synchronize_shared_weights)


def fused_hook_arguments() -> list[str]:
    from paddle.distributed import fleet
    from paddle.distributed.fleet.utils import sequence_parallel_utils

    fleet.init(is_collective=True)
    return list(inspect.signature(sequence_parallel_utils.create_fused_allreduce_gradient_hook([], 1)).parameters)


def test_the_fused_hook_is_still_called_without_its_argument():
    """`fix_fused_sequence_parallel_reduction`."""
    assert run_ranks(fused_hook_arguments, 1) == [["grad"]]


def test_nothing_is_patched_until_installed():
    """Importing the package does not import Paddle; nothing changes for a GPU job or a single process."""
    code = (
        "import sys, paddle_llm.parallel.gloo.backend, paddle_llm.parallel.gather, paddle_llm.parallel.mesh\n"
        "import paddle_llm.parallel.process.first_rank, paddle_llm.parallel.process.failure_detection, paddle_llm.parallel.paddle_fixes\n"
        "assert 'paddle' not in sys.modules and not paddle_llm.parallel.gloo.backend.is_installed()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
