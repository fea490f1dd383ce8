"""What a job that was killed has in common with one that was not: checkpoints, bits, samples, losses."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from paddle_llm.checkpoint.folder import list_checkpoints
from paddle_llm.checkpoint.format.reader import Reader
from paddle_llm.checkpoint.format.verify import problem_of
from paddle_llm.rehearse.compare import FACTOR, FIRST_STEP_LIMITS, MAX_FACTOR
from tests.checkpoint.soak.jobs import LAYOUTS, STEPS, Job, Settings
from tests.helpers.pretrain_jobs import numbers, rows


def valid_checkpoints(output: Path) -> list[int]:
    """Return the steps of the checkpoints whose digests are right."""
    return [step for step, folder in list_checkpoints(output) if problem_of(folder, "full") is None]


@dataclass
class Reference:
    """A training that was not killed.

    Attributes:
        job: The job.
        settings: Its settings.
    """

    job: Job
    settings: Settings

    def events(self, rank: int) -> list[tuple[int, str, int]]:
        """Return (step, phase, number of events) of a rank."""
        return [(step, phase, count) for step, phase, count in self.job.records(1).read("events", rank)]

    @property
    def losses(self) -> dict[tuple[int, str], float]:
        return losses(self.job.output)

    @property
    def samples(self) -> dict[int, Counter[str]]:
        return samples_of_attempt(self.job, 1, self.settings.layout)


def losses(output: Path) -> dict[tuple[int, str], float]:
    """Return the losses in metrics.jsonl by step and name."""
    return {(row["step"], name): row[name] for row in rows(output) for name in ("loss", "eval_loss") if name in row}


# ---- bits


def differing_bits(job: Path, reference: Path, result: str) -> dict[str, int]:
    """Return the number of bits that differ by tensor, of the last checkpoint and of the trained weights."""
    found = _differing(_tensors(job), _tensors(reference))
    files = [
        {f"{result}/{file.name}": load_file(file) for file in (one / result).glob("*.safetensors")}
        for one in (job, reference)
    ]
    return found | _differing(
        *({f"{file}: {key}": value for file, tensors in one.items() for key, value in tensors.items()} for one in files)
    )


def _tensors(output: Path) -> dict[str, np.ndarray]:
    with Reader(output / f"checkpoint-{STEPS}") as reader:
        return {key: reader.tensor(key) for key in reader.index.tensors}


def _differing(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, int]:
    found = {}
    for key in one.keys() | other.keys():
        mine, theirs = (
            np.frombuffer(values[key].tobytes() if key in values else b"", np.uint8) for values in (one, other)
        )
        length = min(len(mine), len(theirs))
        bits = int(np.unpackbits(mine[:length] ^ theirs[:length]).sum()) + 8 * abs(len(mine) - len(theirs))
        if bits:
            found[key] = bits
    return found


def differing_rows(job: Path, reference: Path) -> int:
    """Return the number of rows of metrics.jsonl that differ, without times."""
    mine, theirs = numbers(job), numbers(reference)
    return sum(one != other for one, other in zip(mine, theirs, strict=False)) + abs(len(mine) - len(theirs))


def differing_state(job: Path, reference: Path) -> list[str]:
    """Return the entries of state.json of the last checkpoint that differ, without the metrics' times."""
    mine, theirs = (json.loads((one / f"checkpoint-{STEPS}/state.json").read_text()) for one in (job, reference))
    return [key for key in mine.keys() | theirs.keys() if key != "meter" and mine.get(key) != theirs.get(key)]


# ---- samples


def samples_of_attempt(job: Job, attempt: int, layout: str) -> dict[int, Counter[str]]:
    """Return the samples of each step of an attempt, also of the step in which it was killed."""
    ranks, copies = LAYOUTS[layout], LAYOUTS[layout].tensor * LAYOUTS[layout].pipeline
    found: dict[int, Counter[str]] = {}
    for rank in range(ranks.world_size):
        file = job.records(attempt).file("samples", rank)
        for line in file.read_text().splitlines() if file.exists() else ():
            step, sample = line.split()
            found.setdefault(int(step), Counter())[sample] += 1
    for samples in found.values():
        for sample in samples:
            samples[sample] /= copies  # tensor-parallel ranks and stages read the same samples
    return found


def effective_samples(job: Job) -> dict[int, Counter[str]]:
    """Return the samples of the steps that led to the result: those after which an attempt's successor resumed."""
    found: dict[int, Counter[str]] = {}
    last = STEPS
    for attempt in reversed(job.attempts):
        if attempt.started_from is None or attempt.started_from >= last:
            continue
        of_steps = samples_of_attempt(job, attempt.number, attempt.layout)
        if not all(step in of_steps for step in range(attempt.started_from + 1, last + 1)):
            continue  # killed before the step of the checkpoint from which the next one resumed
        found |= {step: of_steps[step] for step in range(attempt.started_from + 1, last + 1)}
        last = attempt.started_from
    return found


def lost_and_repeated(job: Job, reference: Reference) -> float:
    """Return the number of samples that were lost, plus those that were used more often than without kills."""
    mine, theirs = effective_samples(job), reference.samples
    wrong = 0.0
    for step in range(1, STEPS + 1):
        one, other = mine.get(step, Counter()), theirs[step]
        wrong += sum(abs(one[sample] - other[sample]) for sample in one.keys() | other.keys())
    return wrong


# ---- losses


@dataclass
class Limits:
    """The oracle's limits for losses on another layout: a multiple of what other micro-batches in one process change."""

    reference: Reference
    other_micro_batches: Reference
    limits: dict[tuple[int, str], float] = field(init=False)

    def __post_init__(self) -> None:
        expected, other = self.reference.losses, self.other_micro_batches.losses
        assert expected.keys() == other.keys()
        self.limits = {}
        for key, loss in expected.items():
            first, floor = FIRST_STEP_LIMITS[key[1]], abs(other[key] / loss - 1)
            self.limits[key] = min(max(first, FACTOR * floor), MAX_FACTOR * first)

    def worst(self, job: Path) -> tuple[float, list[str]]:
        """Return the largest difference in units of its limit, and the losses beyond it."""
        expected, found = self.reference.losses, losses(job)
        if found.keys() != expected.keys():
            return float("inf"), [f"rows {sorted(found.keys() ^ expected.keys())} are missing or too many"]
        shares = {key: abs(found[key] / loss - 1) / self.limits[key] for key, loss in expected.items()}
        beyond = [
            f"{key[1]} of step {key[0]}: {shares[key]:.2f} of its limit {self.limits[key]:.1e}"
            for key in shares
            if not shares[key] <= 1
        ]
        return max(shares.values()), beyond
