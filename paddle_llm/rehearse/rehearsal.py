"""Run the sub-layouts of a rehearsal one after another and collect their results."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.rehearse.case import Case
from paddle_llm.rehearse.oracle import Reference, Verdict, prove, reference_key, reference_of
from paddle_llm.rehearse.ranks import RankError
from paddle_llm.rehearse.shrink.config import Shrunk
from paddle_llm.rehearse.shrink.samples import Samples

TIMEOUT = 600.0  # seconds for the ranks of one case
T = TypeVar("T")


@dataclass(frozen=True)
class SubLayoutResult:
    """The result of one sub-layout.

    Attributes:
        case: Training that was run.
        verdict: Comparison with one process; None if the ranks failed.
        error: Error of the ranks; "" if they finished.
        seconds: Time of the ranks, without the reference.
    """

    case: Case
    verdict: Verdict | None
    error: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the ranks finished and equal one process."""
        return self.verdict is not None and self.verdict.passed


def cases_of(shrunk: Shrunk, samples: Samples) -> list[Case]:
    """Return one case for each sub-layout."""
    return [
        Case(
            one.layout,
            one.config,
            samples.train,
            samples.evaluation if one.config.do_eval else [],
            str(one.layout),
            entry=one.entry,
        )
        for one in shrunk.configs
    ]


def run_sub_layouts(cases: list[Case], begin: Callable[[str], None], timeout: float = TIMEOUT) -> list[SubLayoutResult]:
    """Compare every case with one process; cases with the same training share their reference.

    Args:
        cases: Cases of the sub-layouts.
        begin: Function that gets a description of each step before it starts.
        timeout: Seconds for the ranks of one case.

    Raises:
        UserError: If a rank raises one; any other error of ranks becomes the `error` of the result.
    """
    references: dict[str, Reference] = {}
    results = []
    for case in cases:
        key = reference_key(case)
        if key not in references:
            begin("one process, twice: the reference and its rounding errors")
            try:
                references[key] = _raise_user_errors(partial(reference_of, case, timeout))
            except RankError as error:
                results.append(SubLayoutResult(case, None, f"The reference of one process failed: {error}", 0.0))
                continue
        begin(f"{case.layout}: {counted(case.layout.world_size, 'rank')}")
        results.append(_run(case, references[key], timeout))
    return results


def _run(case: Case, reference: Reference, timeout: float) -> SubLayoutResult:
    began = time.monotonic()
    try:
        verdict = _raise_user_errors(partial(prove, case, reference, timeout=timeout))
    except RankError as error:
        return SubLayoutResult(case, None, str(error), time.monotonic() - began)
    return SubLayoutResult(case, verdict, "", verdict.seconds)


def _raise_user_errors(run: Callable[[], T]) -> T:
    """Raise a UserError of a rank here, for example one about a config.json that PaddleNLP does not support."""
    try:
        return run()
    except RankError as error:
        if isinstance(error.exception, UserError):
            raise error.exception from error
        raise
