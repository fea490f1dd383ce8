"""Do all ranks of a group reduce the same gradients in the same order? If not, say which, before they wait for ever.

Assumed is that all ranks run the same graph in every backward pass. In the first step, each bucket is compared over the
ranks before it is reduced. After that every rank looks for itself whether what it is about to reduce has come up in the
first step, after the same predecessor: a rank on which a parameter has (or lacks) a gradient for once, by a branch in
the model that depends on the data, stops with the names. What remains unseen are ranks that take different ones of
several known courses at the same time.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any, NoReturn

import paddle
import paddle.distributed as dist

_END = (-1, ())  # of a backward pass


class OrderError(RuntimeError):
    """The ranks of a group do not reduce the same gradients in the same order."""


class SameOrder:
    """Remembers and compares the sequences of one group.

    Args:
        group: the sharding group.
        parameters: all that may come up, in the same order on every rank.
    """

    def __init__(self, group: Any, parameters: list):
        self._group = group
        self._names = [p.name for p in parameters]
        self._index = {name: i for i, name in enumerate(self._names)}
        self._known: set[tuple] = set()
        self._last = _END
        self._learning = True
        self._failure = ""

    def check(self, owner: int, parameters: list) -> None:
        """These parameters' gradients are reduced to `owner` next.

        Raises:
            OrderError: on all ranks in the first step, later on the rank that departs from it.
        """
        self._step((owner, tuple(self._index[p.name] for p in parameters)))

    def end_of_backward(self) -> None:
        """Nothing more comes from this backward pass. Raises as `check` does."""
        self._raise_again()
        if self._last != _END:
            self._step(_END)

    def end_of_step(self) -> None:
        """From now on nothing new is expected. Raises what `check` has raised."""
        self._raise_again()
        self._learning = False
        self._last = _END

    def _step(self, content: tuple) -> None:
        self._raise_again()
        transition = (self._last, content)
        if self._learning:
            self._compare(content)
            self._known.add(transition)
        elif transition not in self._known:
            expected = [after for before, after in self._known if before == self._last]
            self._fail(f"{self._tell(content)}, where the first step {self._tell(*expected)}")
        self._last = content

    def _compare(self, content: tuple) -> None:
        if self._all_have(content):
            return
        found: list[tuple] = []
        dist.all_gather_object(found, content, group=self._group)
        others = [rank for rank, other in enumerate(found) if other != content]
        if others:
            self._fail(f"{self._tell(content)}; rank {others[0]} of the group {self._tell(found[others[0]])}")

    def _all_have(self, content: tuple) -> bool:
        """Whether the ranks' digests are equal: one small all-reduce. The contents themselves take several collectives."""
        digest = int.from_bytes(hashlib.blake2b(repr(content).encode(), digest_size=7).digest(), "big")
        bounds = paddle.to_tensor([digest, -digest], dtype="int64")
        dist.all_reduce(bounds, op=dist.ReduceOp.MAX, group=self._group)
        largest, negated_smallest = bounds.tolist()
        return largest == -negated_smallest

    def _tell(self, *contents: tuple) -> str:
        told = []
        for _, indices in contents:
            names = [self._names[i] for i in indices]
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            told.append(f"reduces the gradients of {shown}" if names else "has no more gradients")
        return " or ".join(told)

    def _fail(self, story: str) -> NoReturn:
        self._failure = (
            f"rank {dist.get_rank()} {story}. Sharded gradients need the same parameters to get gradients on every rank and in "
            "every micro batch, in the same order. Freeze the ones that do not always take part, or use --sharding stage1."
        )
        # On stderr as well: Paddle's recompute (3.3.1) ends what is raised in a backward pass as "Get backward function failed".
        print(self._failure, file=sys.stderr, flush=True)
        raise OrderError(self._failure)

    def _raise_again(self) -> None:
        """Of what is raised in a hook of a recomputed part, Paddle 3.3.1 loses some, one time in twenty, and goes on."""
        if self._failure:
            raise OrderError(self._failure)
