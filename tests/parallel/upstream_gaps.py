"""The behaviour of Paddle 3.3.1 on CPU ranks without our backend; runs inside ranks (see test_upstream.py)."""

from __future__ import annotations


def refuses(call) -> bool:
    try:
        call()
    except (RuntimeError, ValueError, NotImplementedError, AttributeError, TypeError, AssertionError):
        return True
    return False


def missing_methods() -> list[str]:
    """Return the methods that we set although Paddle's class has them; each missing one raises before it sends anything."""
    import paddle
    from paddle.base.core import ReduceOp

    paddle.distributed.init_parallel_env()
    pg = paddle.distributed.collective._get_default_group().process_group
    x, out, rows = paddle.ones([2]), paddle.ones([4]), [paddle.ones([2]), paddle.ones([2])]
    total = ReduceOp.SUM
    calls = {
        "all_gather_into_tensor_on_calc_stream": (out, x),
        "all_gather_on_calc_stream": (rows, x),
        "all_gather_partial": (out, out, 2, 0),
        "all_gather_partial_on_calc_stream": (out, out, 2, 0),
        "all_reduce_on_calc_stream": (x, total),
        "all_to_all": (rows, rows, True),
        "all_to_all_on_calc_stream": (rows, rows),
        "all_to_all_single": (x, x, [1, 1], [1, 1], True),
        "all_to_all_single_on_calc_stream": (x, x, [1, 1], [1, 1]),
        "all_to_all_tensor": (x, x, True),
        "all_to_all_tensor_on_calc_stream": (x, x),
        "broadcast_on_calc_stream": (x, 0),
        "recv_on_calc_stream": (x, 0),
        "recv_partial": (x, 0, 2, 0, True),
        "recv_partial_on_calc_stream": (x, 0, 2, 0),
        "reduce_on_calc_stream": (x, 0, total),
        "reduce_scatter": (x, rows, total, True),
        "reduce_scatter_on_calc_stream": (x, rows, total),
        "reduce_scatter_tensor": (x, out, total, True),
        "reduce_scatter_tensor_on_calc_stream": (x, out, total),
        "scatter_on_calc_stream": (x, rows, 0),
        "scatter_tensor_on_calc_stream": (x, out, 0),
        "send_on_calc_stream": (x, 1),
        "send_partial": (x, 1, 2, 0, True),
        "send_partial_on_calc_stream": (x, 1, 2, 0),
    }
    found = [name for name, arguments in calls.items() if not refuses(lambda n=name, a=arguments: getattr(pg, n)(*a))]
    if not refuses(lambda: pg.all_reduce(x, ReduceOp.AVG, True)):
        found.append("AVG")
    return found


def float16_sum() -> float:
    import paddle

    paddle.distributed.init_parallel_env()
    x = paddle.ones([1], dtype="float16")
    paddle.distributed.all_reduce(x)
    return x.astype("float32").item()


def int16_broadcast() -> None:
    import paddle

    paddle.distributed.init_parallel_env()
    paddle.distributed.broadcast(paddle.ones([2], dtype="int16"), src=0)


def p2p_chain() -> str:
    """Send 0 -> 1 -> 2 with a shorter timeout: the numbers of the operations differ, so the second never arrives."""
    import paddle

    from paddle_llm.parallel.gloo.timeout import set_group_timeout

    paddle.distributed.init_parallel_env()
    rank = paddle.distributed.get_rank()
    assert set_group_timeout(0, rank, 3, 1500), "the timeout is no longer 30 s, or at another address"
    x = paddle.ones([1])
    try:
        if rank > 0:
            paddle.distributed.recv(x, src=rank - 1)
        if rank < 2:
            paddle.distributed.send(x, dst=rank + 1)
    except RuntimeError:
        return "never arrived"
    return "arrived"


def batch_of_one_direction() -> bool:
    """Return on rank 1 whether a batch (`_start_coalescing`) collects: a send in it returns before its receiver receives."""
    import time

    import paddle

    paddle.distributed.init_parallel_env()
    pg = paddle.distributed.collective._get_default_group().process_group
    store = paddle.distributed.collective._default_store
    if paddle.distributed.get_rank() == 1:
        store.get("the send begins")
        time.sleep(1.0)  # for a send that returns at once; one that waits for this rank cannot return before
        collected = store.add("the send has returned", 0) > 0
        pg.recv(paddle.ones([1]), 0, True)
        return collected
    store.set("the send begins", b"1")
    pg._start_coalescing()
    pg.send(paddle.ones([1]), 1, True)
    store.add("the send has returned", 1)
    pg._end_coalescing()
    return False


def keys_without_a_group() -> list[bool]:
    """Return whether the rendezvous of a group leaves keys without the name of the group in the store."""
    import paddle
    from paddle.base import core

    from paddle_llm.parallel.gloo import rendezvous as gloo_rendezvous

    found: list[bool] = []

    paddle.distributed.init_parallel_env()
    rank = paddle.distributed.get_rank()
    job = paddle.distributed.collective._default_store
    for group_id in (101, 102):
        store = gloo_rendezvous._own_store(job, rank, f"probe/{group_id}")
        core.ProcessGroupGloo.create(store, rank, 2, group_id)
        found.append(len(store.get("0")) > 0)
    return found
