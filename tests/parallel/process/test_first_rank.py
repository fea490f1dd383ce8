"""The result or the failure of a function that rank 0 runs for all ranks reaches every rank."""

from __future__ import annotations

import pytest

from paddle_llm.core.errors import ConfigError, UserError
from paddle_llm.parallel.process.first_rank import on_first_rank
from paddle_llm.rehearse.ranks import run_ranks


def calls() -> list[str]:
    import os

    import paddle

    from paddle_llm.parallel.gloo.backend import install_gloo_backend

    results = []

    def attempt(fn):
        try:
            results.append(f"got {on_first_rank(fn)}")
        except Exception as error:
            results.append(f"{type(error).__name__}: {error}")

    def fail(error):
        raise error

    attempt(lambda: "too early")
    install_gloo_backend()
    paddle.distributed.init_parallel_env()
    attempt(lambda: ("built by", os.environ["PADDLE_TRAINER_ID"]))
    attempt(lambda: fail(ConfigError(["max_steps is 0"])))
    attempt(lambda: fail(ValueError("odd")))
    return results


def test_every_rank_gets_the_result_or_the_error():
    first, *others = run_ranks(calls, 3)
    problems = "1 problem in the configuration:\n  1. max_steps is 0"
    early = (
        "RuntimeError: on_first_rank() needs the parallel environment: call fleet.init() or init_parallel_env() first"
    )
    assert first == [early, "got ('built by', '0')", f"ConfigError: {problems}", "ValueError: odd"]
    for results in others:
        failed = "FirstRankError: on rank 0: ValueError: odd"
        assert results == [early, "got ('built by', '0')", f"UserError: {problems}", failed]


def test_one_process_needs_no_parallel_environment():
    assert on_first_rank(lambda: 5) == 5

    def fail():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        on_first_rank(fail)
