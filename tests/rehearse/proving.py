"""Compare many cases: those of one training share their reference, which is run once."""

from __future__ import annotations

from paddle_llm.rehearse.case import Case
from paddle_llm.rehearse.oracle import Reference, Verdict, prove, reference_key, reference_of


class Prover:
    """Compares cases with one process and keeps their references.

    Attributes:
        references: References by the oracle's key.

    Args:
        timeout: Seconds for each run of a case.
    """

    def __init__(self, timeout: float = 120):
        self.references: dict[str, Reference] = {}
        self._timeout = timeout

    def __call__(self, case: Case) -> Verdict:
        """Compare one case with one process.

        Raises:
            RankError: If a rank raises, dies or does not finish.
        """
        key = reference_key(case)
        if key not in self.references:
            self.references[key] = reference_of(case, self._timeout)
        return prove(case, self.references[key], timeout=self._timeout)


def margin(verdict: Verdict) -> float:
    """Return the largest ratio of a difference to its limit; above 1 for a failure."""
    return max(found.value / found.limit for found in verdict.worst.values())
