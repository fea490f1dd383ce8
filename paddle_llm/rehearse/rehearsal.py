"""Runs the faces of a rehearsal one after the other, and keeps what came of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from paddle_llm.core.errors import UserError
from paddle_llm.rehearse.case import Case
from paddle_llm.rehearse.oracle import Reference, Verdict, prove, reference_key, reference_of
from paddle_llm.rehearse.ranks import RankError
from paddle_llm.rehearse.samples import Samples
from paddle_llm.rehearse.shrink import Shrunk

TIMEOUT = 600.0


@dataclass(frozen=True)
class Face:
    """One layout that was run.

    Attributes:
        verdict: None where the ranks did not come to their end.
        error: then, what they said.
        seconds: of its ranks, the reference's left out.
    """

    case: Case
    verdict: Verdict | None
    error: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.verdict is not None and self.verdict.passed


def cases_of(shrunk: Shrunk, samples: Samples) -> list[Case]:
    """One case for each face."""
    return [
        Case(
            one.layout,
            one.config,
            samples.train,
            samples.evaluation if one.config.do_eval else [],
            str(one.layout),
            entry=one.entry,
        )
        for one in shrunk.faces
    ]


def run_faces(cases: list[Case], begin: Callable[[str], None], timeout: float = TIMEOUT) -> list[Face]:
    """Prove every case; faces with the same training share their reference.

    Args:
        begin: called with what runs next.

    Raises:
        UserError: of a rank; what a layout's ranks raise beside that becomes the face's `error`.
    """
    references: dict[str, Reference] = {}
    faces = []
    for case in cases:
        key = reference_key(case)
        if key not in references:
            begin("one process, twice: the reference and its rounding")
            try:
                references[key] = _user_errors_out(lambda case=case: reference_of(case, timeout))
            except RankError as error:
                faces.append(Face(case, None, f"The one process, which it is compared with, failed: {error}", 0.0))
                continue
        begin(f"{case.layout}: {_count(case.layout.world_size)}")
        faces.append(_run(case, references[key], timeout))
    return faces


def _count(ranks: int) -> str:
    return f"{ranks} ranks" if ranks > 1 else "1 rank"


def _run(case: Case, reference: Reference, timeout: float) -> Face:
    began = time.monotonic()
    try:
        verdict = _user_errors_out(lambda: prove(case, reference, timeout=timeout))
    except RankError as error:
        return Face(case, None, str(error), time.monotonic() - began)
    return Face(case, verdict, "", verdict.seconds)


def _user_errors_out(run: Callable):
    """A user's mistake that only a rank could find (a config.json that PaddleNLP cannot express) is one here, too."""
    try:
        return run()
    except RankError as error:
        if isinstance(error.exception, UserError):
            raise error.exception from error
        raise
