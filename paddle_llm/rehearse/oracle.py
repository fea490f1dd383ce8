"""The one-process oracle: check that a training in a layout equals the same training in one process.

Both use the product's own job assembly on CPU ranks over gloo, with the same weights, order of samples and global
batch. After every step these are compared on every rank: the loss of the global batch, the gradient norm before
clipping, every gradient, every weight and both Adam moments, and the evaluation loss (`compare.py`).
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass

import numpy as np

from paddle_llm.parallel.process.start import start_process
from paddle_llm.rehearse.case import Case
from paddle_llm.rehearse.compare import (
    FIRST_STEP_LIMITS,
    Difference,
    Floor,
    compare,
    missing_values,
    rounding_floor,
    worst_of,
)
from paddle_llm.rehearse.ranks import run_ranks
from paddle_llm.rehearse.record import RankRecord

TIMEOUT = 300.0  # seconds of one run


@dataclass(frozen=True)
class Reference:
    """The training in one process, run twice.

    Attributes:
        record: Record of the training.
        floor: Differences that rounding causes between the two runs, by (quantity, step).
        seconds: Time of both runs.
    """

    record: RankRecord
    floor: Floor
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    Attributes:
        case: Training that was compared.
        worst: Largest difference of each quantity.
        failures: Differences that exceed their limits.
        compared: Number of comparisons.
        floor: Rounding floor of the reference.
        seconds: Time of the layout's run, without the reference.
    """

    case: Case
    worst: dict[str, Difference]
    failures: list[Difference]
    compared: int
    floor: Floor
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether something was compared and every difference is within its limit."""
        return not self.failures and self.compared > 0


def reference_key(case: Case) -> str:
    """Return a key that is equal for cases with the same reference."""
    digest = hashlib.sha256()
    for part in (case.train, case.evaluation):
        digest.update(f"{len(part)} samples".encode())
        for sample in part:
            for name, values in sorted(sample.items()):
                digest.update(f"{name} {values.dtype} {values.shape}".encode())
                digest.update(np.ascontiguousarray(values).tobytes())
    config = case.in_one_process().config.model_dump(mode="json")
    return json.dumps([case.entry, config, digest.hexdigest()], sort_keys=True)


def reference_of(case: Case, timeout: float = TIMEOUT) -> Reference:
    """Run a case in one process twice, the second time with micro-batches of another size.

    Args:
        case: The case.
        timeout: Seconds for one run.

    Raises:
        RankError: If the process raises, dies or does not finish.
        RuntimeError: If a quantity is not recorded, so that it could not be compared.
    """
    began = time.monotonic()
    single, other = case.in_one_process(), case.with_other_micro_batches()
    (record,) = run_case(single, timeout)
    missing = missing_values(record, case.config.max_steps, bool(case.evaluation))
    if missing:
        raise RuntimeError(f"one process did not record {', '.join(missing)}")
    floor: Floor = {}
    if other is not None:
        floor = rounding_floor(record, run_case(other, timeout)[0])
    return Reference(record, floor, time.monotonic() - began)


def prove(
    case: Case,
    reference: Reference | None = None,
    *,
    limits: dict[str, float] | None = None,
    timeout: float = TIMEOUT,
) -> Verdict:
    """Run a case on the ranks of its layout and compare it with one process.

    Args:
        case: The case.
        reference: Reference of a case with the same `reference_key`; by default it is run here.
        limits: Limits of the first step by quantity, instead of those of `compare.FIRST_STEP_LIMITS`.
        timeout: Seconds for one run.

    Raises:
        RankError: If a rank raises, dies or does not finish.
    """
    reference = reference or reference_of(case, timeout)
    began = time.monotonic()
    records = run_case(case, timeout)
    seconds = time.monotonic() - began
    found = compare(reference.record, records, reference.floor, FIRST_STEP_LIMITS | (limits or {}))
    failures = [difference for difference in found if not difference.passed]
    return Verdict(case, worst_of(found), failures, len(found), reference.floor, seconds)


def run_case(case: Case, timeout: float = TIMEOUT, env: dict[str, str] | None = None) -> list[RankRecord]:
    """Run a case on its device and return the record of each rank.

    Args:
        case: The case.
        timeout: Seconds for the run.
        env: Environment variables of the ranks.
    """
    device = case.config.device or "cpu"
    # On a GPU float32 is compared, not TF32, which rounds factors to 10 bits.
    env = {**({"NVIDIA_TF32_OVERRIDE": "0"} if device == "gpu" else {}), **(env or {})}
    return run_ranks(run_rank, case.layout.world_size, case, timeout=timeout, quiet=True, device=device, env=env)


def run_rank(case: Case) -> RankRecord:
    """Run one rank of a case in its own process."""
    start_process(case.config.device or "cpu", case.layout.world_size)
    # After the start of the process: this module imports Paddle.
    from paddle_llm.rehearse.case_trainer import train_and_record

    return train_and_record(case)
