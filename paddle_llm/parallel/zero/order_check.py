"""Check that all ranks of a group reduce the same gradients in the same order; otherwise they would wait forever.

All ranks must execute the same graph in every backward pass. In the first step, each bucket is compared between the
ranks before it is reduced. After that, every rank checks for itself that the bucket it is about to reduce occurred in
the first step, after the same bucket. A rank on which a parameter has (or lacks) a gradient once, because of a branch
in the model that depends on the data, stops with the names. Ranks that follow different known sequences at the same
time are not detected.
"""

from __future__ import annotations

import hashlib
import sys
from typing import NoReturn

import paddle
import paddle.distributed as dist
from paddle import Tensor
from paddle.distributed.collective import Group

_Content = tuple[int, tuple[int, ...]]  # owner, and indices of the parameters
_END: _Content = (-1, ())  # of a backward pass
_SHOWN_NAMES = 4


class OrderError(RuntimeError):
    """The ranks of a group do not reduce the same gradients in the same order."""


class SameOrder:
    """Compares the buckets of the ranks of one group, and those of each step with the first step.

    Args:
        group: Sharding group.
        parameters: All parameters that may have a gradient, in the same order on every rank.
    """

    def __init__(self, group: Group, parameters: list[Tensor]):
        self._group = group
        self._names = [p.name for p in parameters]
        self._index = {name: i for i, name in enumerate(self._names)}
        self._known: set[tuple[_Content, _Content]] = set()
        self._last = _END
        self._is_first_step = True
        self._failure = ""

    def check(self, owner: int, parameters: list[Tensor]) -> None:
        """Check a bucket before it is reduced.

        Args:
            owner: Rank in the group to which the gradients are reduced.
            parameters: Parameters of the bucket.

        Raises:
            OrderError: If the order differs: in the first step on all ranks, later on the rank that differs from it.
        """
        self._advance((owner, tuple(self._index[p.name] for p in parameters)))

    def end_of_backward(self) -> None:
        """Check that this backward pass may end here. Raises as `check` does."""
        self._raise_again()
        if self._last != _END:
            self._advance(_END)

    def end_of_step(self) -> None:
        """End a step: after the first one, new sequences are errors. Raises what `check` has raised."""
        self._raise_again()
        self._is_first_step = False
        self._last = _END

    def _advance(self, content: _Content) -> None:
        self._raise_again()
        transition = (self._last, content)
        if self._is_first_step:
            self._compare(content)
            self._known.add(transition)
        elif transition not in self._known:
            expected = [after for before, after in self._known if before == self._last]
            self._fail(f"{self._describe(content)}, but the first step {self._describe(*expected)} there")
        self._last = content

    def _compare(self, content: _Content) -> None:
        if self._all_have(content):
            return
        found: list[_Content] = []
        dist.all_gather_object(found, content, group=self._group)
        others = [rank for rank, other in enumerate(found) if other != content]
        if others:
            other = self._describe(found[others[0]])
            self._fail(f"{self._describe(content)}, but rank {others[0]} of the group {other}")

    def _all_have(self, content: _Content) -> bool:
        """Return whether the ranks' digests are equal: one small all-reduce instead of several collectives."""
        digest = int.from_bytes(hashlib.blake2b(repr(content).encode(), digest_size=7).digest(), "big")
        bounds = paddle.to_tensor([digest, -digest], dtype="int64")
        dist.all_reduce(bounds, op=dist.ReduceOp.MAX, group=self._group)
        largest, negated_smallest = bounds.tolist()
        return largest == -negated_smallest

    def _describe(self, *contents: _Content) -> str:
        described = []
        for _, indices in contents:
            names = [self._names[i] for i in indices]
            more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
            shown = ", ".join(names[:_SHOWN_NAMES]) + more
            described.append(f"reduces the gradients of {shown}" if names else "has no more gradients")
        return " or ".join(described)

    def _fail(self, problem: str) -> NoReturn:
        self._failure = (
            f"rank {dist.get_rank()} {problem}. With sharded gradients, the same parameters must have gradients on every rank "
            "and in every micro-batch, in the same order. Freeze parameters that are not always used, or use --sharding stage1."
        )
        # On stderr, too: Paddle's recompute (3.3.1) replaces an exception by "Get backward function failed".
        print(self._failure, file=sys.stderr, flush=True)
        raise OrderError(self._failure)

    def _raise_again(self) -> None:
        """Raise an earlier failure again: Paddle 3.3.1 sometimes (1 in 20) loses exceptions in a recomputed part."""
        if self._failure:
            raise OrderError(self._failure)
