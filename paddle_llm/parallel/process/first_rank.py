"""Something that one rank does for the whole job: build an index, read a file, ask a question."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from paddle_llm.core.errors import UserError

T = TypeVar("T")
_calls = 0


class FirstRankError(RuntimeError):
    """What rank 0 did for all of them failed; its own log has the traceback."""


def on_first_rank(fn: Callable[[], T]) -> T:
    """Run `fn` on rank 0 of the job while the others wait; every rank gets its result.

    All ranks call it, in the same order among their calls. The result travels pickled through the job's store: keep it
    small. However long `fn` takes, the others wait; when rank 0 dies they end (see `lifeline`).

    Raises:
        UserError: on every rank, when `fn` raises one.
        FirstRankError: on the other ranks, when `fn` raises anything else (rank 0 raises that itself).
        RuntimeError: in a job of several ranks before the parallel environment is initialised.
    """
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) <= 1:
        return fn()
    store = _job_store()
    global _calls
    key = f"paddle_llm/first_rank/{_calls}"
    _calls += 1
    if os.environ.get("PADDLE_TRAINER_ID", "0") != "0":
        return _take(pickle.loads(store.get(key)))
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


def _take(message: tuple[str, Any]) -> Any:
    kind, value = message
    if kind == "returned":
        return value
    raise UserError(value) if kind == "user error" else FirstRankError(f"on rank 0: {value}")


def _job_store() -> Any:
    from paddle.distributed import collective

    if collective._default_store is None:
        raise RuntimeError("on_first_rank() in a job of several ranks comes after fleet.init() or init_parallel_env()")
    return collective._default_store
