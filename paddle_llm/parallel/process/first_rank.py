"""Run a function on one rank for the whole job, for example to build an index or to read a file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from paddle_llm.core.errors import UserError
from paddle_llm.parallel.process.store import Store

T = TypeVar("T")
_calls = 0


class FirstRankError(RuntimeError):
    """A function that rank 0 ran for all ranks failed; the log of rank 0 has the traceback."""


def on_first_rank(fn: Callable[[], T]) -> T:
    """Run `fn` on rank 0 of the job while the others wait, and return its result on every rank.

    All ranks call this, in the same order among their calls. The result is pickled and sent through the job's store:
    keep it small. The others wait as long as `fn` takes; when rank 0 dies, they end (see `failure_detection`).

    Raises:
        UserError: If `fn` raises one; on every rank.
        FirstRankError: If `fn` raises anything else; on the other ranks, while rank 0 raises the original error.
        RuntimeError: If a job with several ranks has not initialised the parallel environment.
    """
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) <= 1:
        return fn()
    store = _job_store()
    global _calls
    key = f"paddle_llm/first_rank/{_calls}"
    _calls += 1
    if os.environ.get("PADDLE_TRAINER_ID", "0") != "0":
        result: T = _unpack(pickle.loads(store.get(key)))
        return result
    try:
        result = fn()
        store.set(key, pickle.dumps(("returned", result)))
    except UserError as error:
        store.set(key, pickle.dumps(("user error", str(error))))
        raise
    except BaseException as error:
        store.set(key, pickle.dumps(("failed", f"{type(error).__name__}: {error}")))
        raise
    return result


def _unpack(message: tuple[str, Any]) -> Any:
    kind, value = message
    if kind == "returned":
        return value
    raise UserError(value) if kind == "user error" else FirstRankError(f"on rank 0: {value}")


def _job_store() -> Store:
    from paddle.distributed import collective

    if collective._default_store is None:
        raise RuntimeError(
            "on_first_rank() needs the parallel environment: call fleet.init() or init_parallel_env() first"
        )
    return collective._default_store
