"""Kill jobs at moments that are drawn from a seed, start them again, and judge what they have computed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.checkpoint.soak.jobs import (
    KILLED_LAYOUTS,
    LAYOUTS,
    LORA,
    METHODS,
    ONE,
    STEPS,
    Attempt,
    Job,
    Settings,
    make_data,
)
from tests.checkpoint.soak.judge import (
    Limits,
    Reference,
    differing_bits,
    differing_rows,
    differing_state,
    lost_and_repeated,
    valid_checkpoints,
)
from tests.checkpoint.soak.moments import Kill

WINDOW = 4  # steps after the newest checkpoint
DROPOUT = 0.1


@dataclass
class Result:
    """What was found in one job.

    Attributes:
        name: Number of the job in its campaign.
        method: Method of the training.
        layout: Layout of the first attempt.
        changes_layout: Whether the layout of each further attempt is drawn.
        launcher: Whether Paddle's launcher started the ranks.
        kills: The kills that happened, each with the layout.
        lost_checkpoints: Kills after which the newest valid checkpoint was older than before.
        differing_bits: Bits of weights, optimizer states and random states that differ; same layout only.
        differing_rows: Rows of metrics.jsonl that differ; same layout only.
        wrong_samples: Samples that were lost or repeated.
        loss_share: Largest difference of a loss in units of the oracle's limit; other layouts only.
        faults: Everything that must not happen, as text.
        left: Entries of the output folder that a job without kills does not have.
    """

    name: int
    method: str
    layout: str
    changes_layout: bool
    launcher: bool
    kills: list[dict[str, Any]] = field(default_factory=list)
    lost_checkpoints: int = 0
    differing_bits: int = 0
    differing_rows: int = 0
    wrong_samples: float = 0
    loss_share: float = 0
    faults: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class Campaign:
    """Jobs that share data and references.

    Args:
        folder: Empty folder.
        seed: Seed of all draws.
        launcher: Whether Paddle's launcher starts the ranks of the killed jobs. References without workers are forked.
        report: Function that gets a line about each attempt.
    """

    def __init__(
        self, folder: Path, seed: int, *, launcher: bool = False, report: Callable[[str], None] = print
    ) -> None:
        self.folder, self.seed, self.launcher, self.report = folder, seed, launcher, report
        self.data = make_data(folder / "data")
        self._references: dict[Settings, Reference] = {}
        self._start_events: dict[tuple[Settings, bool, int], int] = {}  # by rank; whether it resumes

    def reference(self, settings: Settings) -> Reference:
        """Return the training that is not killed; it runs at the first call."""
        if settings not in self._references:
            launched = settings.workers > 0  # a forked rank may not start processes
            job = Job(self.data, self.folder / f"reference-{len(self._references)}", launched)
            attempt = job.start(settings)
            assert attempt.completed, f"the training without a kill failed: {attempt.output}"
            self._references[settings] = Reference(job, settings)
            self.report(f"reference {len(self._references)}: {settings}")
        return self._references[settings]

    def run(self, number: int, method: str, layout: str, kills: int, *, changes_layout: bool = False) -> Result:
        """Run a job that is killed several times, and judge it.

        Args:
            number: Number of the job, which is a part of its seed.
            method: One of METHODS.
            layout: Layout of its first attempt.
            kills: Number of kills. The job may complete earlier, if an attempt does not reach its moment.
            changes_layout: Whether each further attempt has a layout that is drawn.
        """
        draw = random.Random(f"{self.seed}/{number}")
        dropout = DROPOUT if method == LORA and not changes_layout else 0.0
        first = Settings(method, layout, dropout, workers=int(self.launcher and number % 4 == 1))
        result = Result(number, method, layout, changes_layout, self.launcher)
        job = Job(self.data, self.folder / f"job-{number}", self.launcher)
        settings, completed = first, False
        while not completed and not result.faults:
            if job.attempts and changes_layout:
                names = [name for name in LAYOUTS if name != ONE or not self.launcher]
                settings = Settings(method, draw.choice(names), dropout, workers=first.workers)
            kill = self._draw(draw, job, settings) if len(result.kills) < kills else None
            completed = self._attempt(job, settings, kill, result)
        if completed:
            self._judge(job, first, result)
        if not result.faults:
            job.remove()
        return result

    def _attempt(self, job: Job, settings: Settings, kill: Kill | None, result: Result) -> bool:
        """Start a job once; return whether it has completed."""
        before = max(valid_checkpoints(job.output), default=0)
        attempt = job.start(settings, kill)
        after = max(valid_checkpoints(job.output), default=0)
        self._learn(job, settings, attempt)
        if attempt.killed:
            result.kills.append(
                {"layout": settings.layout, "moment": str(kill), "phase": kill.phase, "whom": kill.whom}
            )
        if after < before:
            result.lost_checkpoints += 1
            result.faults.append(f"{attempt}: checkpoint {before} is lost, the newest is {after}")
        if attempt.started_from not in (None, before):
            result.faults.append(f"{attempt}: resumed from step {attempt.started_from}, the newest was {before}")
        if not attempt.killed and not attempt.completed:
            result.faults.append(f"{attempt}: failed without a kill: {_problem(attempt.output)}")
        state = "killed" if attempt.killed else "completed" if attempt.completed else "FAILED"
        self.report(
            f"job {result.name} ({result.method}), attempt {attempt.number}, {settings.layout}: from step {before}, {kill}: {state}"
        )
        return attempt.completed

    def _draw(self, draw: random.Random, job: Job, settings: Settings) -> Kill:
        """Draw a moment among the events of the next steps: first its phase, then one of the events of all ranks."""
        start = max(valid_checkpoints(job.output), default=0)
        # In a few steps, so that a job is killed often, or in all that follow.
        last = start + draw.choice([WINDOW, STEPS + 1])
        events = []
        counted = self.reference(self._counted(settings))
        for rank in range(settings.ranks):
            found = [
                (step, phase, count)
                for step, phase, count in counted.events(rank)
                if start < step <= last and phase != "start"
            ]
            number = self._start_events.get((self._counted(settings), start > 0, rank))
            if number is None:
                number = next((count for _, phase, count in counted.events(rank) if phase == "start"), 0)
            events += [(rank, *event) for event in [*([(0, "start", number)] if number else []), *found]]
        phase = draw.choice(sorted({event[2] for event in events}))
        candidates = [event for event in events if event[2] == phase]
        rank, step, _, count = draw.choices(candidates, [event[3] for event in candidates])[0]
        whom = draw.choices(["rank", "all", "launcher"], [6, 2, 2 if self.launcher else 0])[0]
        return Kill(rank, step, phase, draw.randint(1, count), whom)

    @staticmethod
    def _counted(settings: Settings) -> Settings:
        """Return the settings whose events are those of `settings`."""
        return Settings(settings.method, settings.layout, DROPOUT if settings.method == LORA else 0.0)

    def _learn(self, job: Job, settings: Settings, attempt: Attempt) -> None:
        """Remember how many events of files the start of a job has, which depends on the checkpoint that it reads."""
        for rank in range(settings.ranks):
            counts = job.records(attempt.number).read("events of the start", rank)
            if counts and attempt.started_from is not None:
                key = (self._counted(settings), attempt.started_from > 0, rank)
                self._start_events[key] = counts[0][2]

    def _judge(self, job: Job, first: Settings, result: Result) -> None:
        reference = self.reference(Settings(first.method, ONE) if result.changes_layout else first)
        result.left = sorted(
            {path.name for path in job.output.iterdir()} - {path.name for path in reference.job.output.iterdir()}
        )
        result.wrong_samples = lost_and_repeated(job, reference)
        if result.wrong_samples:
            result.faults.append(f"{result.wrong_samples} samples were lost or repeated")
        if result.changes_layout:
            other = self.reference(Settings(first.method, ONE, micro_batch=2))
            result.loss_share, beyond = Limits(reference, other).worst(job.output)
            result.faults += beyond
            return
        bits = differing_bits(job.output, reference.job.output, first.result)
        result.differing_bits = sum(bits.values())
        result.differing_rows = differing_rows(job.output, reference.job.output)
        if bits:
            result.faults.append(f"bits of {sorted(bits)} differ")
        if result.differing_rows:
            result.faults.append(f"{result.differing_rows} rows of metrics.jsonl differ")
        if state := differing_state(job.output, reference.job.output):
            result.faults.append(f"{state} of state.json differ")


def _problem(output: str) -> str:
    """Return the message of a job that has failed: its error, or the end of its output."""
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    return errors[0] if errors else output[-2000:]


def plan(number: int) -> dict[str, Any]:
    """Return method, layout and kind of a job, so that consecutive jobs cover all of them."""
    return {
        "layout": KILLED_LAYOUTS[number % 4],
        "method": METHODS[(number // 4 + number) % 2],
        "changes_layout": bool((number // 8 + number // 2 + number // 4) % 2),
    }
