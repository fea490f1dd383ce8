"""Work that one rank does for all: checking and building files. What goes wrong there is known on every rank."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from paddle_llm.config.errors import UserError


def on_first_rank(work: Callable[[], Any]) -> Any:
    """Call `work` on rank 0 of the job while the others wait; every rank gets its result, which must pickle.

    Raises:
        UserError: on every rank, where `work` raised one.
        RuntimeError: on every rank, with rank 0's traceback, where it raised anything else.
    """
    import paddle.distributed as dist

    if dist.get_world_size() == 1:
        return work()
    outcome: list[tuple[str, Any]] = [("waiting", None)]
    if dist.get_rank() == 0:
        outcome = [_attempt(work)]
    dist.broadcast_object_list(outcome, src=0)
    kind, value = outcome[0]
    if kind == "mistake":
        raise UserError(value)
    if kind == "failure":
        raise RuntimeError(f"rank 0 failed:\n{value}")
    return value


def _attempt(work: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "result", work()
    except UserError as error:
        return "mistake", str(error)
    except Exception:
        return "failure", traceback.format_exc()
