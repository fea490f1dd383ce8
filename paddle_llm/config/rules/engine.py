"""What a rule between fields is: a function that looks at a Run and yields problems and notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, cast

from paddle_llm.config.layout import Layout
from paddle_llm.config.model_facts import ModelFacts
from paddle_llm.config.run_config import RunConfig


@dataclass(frozen=True)
class Problem:
    """Something that must be mended: what, where, what to do."""

    text: str


@dataclass(frozen=True)
class Notice:
    """Something worth one line at the start."""

    text: str


class Unknown(Exception):
    """A rule asked for something that is not known, because another mistake hides it. The rule has no say then."""


_READS = {"sharding_stage": "sharding", "sharding_offload": "sharding"}


class _Guarded:
    """A config whose misspelt fields cannot be read, so that one mistake is told once and not through every rule."""

    def __init__(self, config: RunConfig, bad: frozenset[str]):
        self._config, self._bad = config, bad

    def __getattr__(self, name: str) -> Any:
        if _READS.get(name, name) in self._bad:
            raise Unknown(name)
        return getattr(self._config, name)


def guarded(config: RunConfig, bad: frozenset[str]) -> RunConfig:
    """`config`, raising Unknown when a field of `bad` is read."""
    return cast(RunConfig, _Guarded(config, bad))


@dataclass(frozen=True)
class Run:
    """What rules may look at.

    Attributes:
        config: as asked for, with defaults, nothing derived yet.
        asked: names of the fields that somebody set.
        world_size: ranks of the job.
        device: "gpu" or "cpu".
        folder: what stands for a built-in model name on this machine; None where the name itself is used.
        entry: "pretrain" or "finetune".
        here: the run is for this machine, whose folders can be looked at.
    """

    config: RunConfig
    asked: frozenset[str]
    world_size: int
    device: str
    entry: str
    known_layout: Layout | None
    known_facts: ModelFacts | None
    folder: Path | None = None
    here: bool = False

    @property
    def layout(self) -> Layout:
        if self.known_layout is None:
            raise Unknown("layout")
        return self.known_layout

    @property
    def facts(self) -> ModelFacts:
        if self.known_facts is None:
            raise Unknown("facts")
        return self.known_facts


Rule = Callable[[Run], Iterator[Problem | Notice]]


def fine_tuning(rule: Rule) -> Rule:
    """A rule that has nothing to say about pretraining."""

    @wraps(rule)
    def only_there(run: Run) -> Iterator[Problem | Notice]:
        if run.entry == "finetune":
            yield from rule(run)

    return only_there


def pretraining(rule: Rule) -> Rule:
    """A rule that has nothing to say about fine-tuning."""

    @wraps(rule)
    def only_there(run: Run) -> Iterator[Problem | Notice]:
        if run.entry == "pretrain":
            yield from rule(run)

    return only_there


def check(run: Run, rules: list[Rule]) -> list[Problem | Notice]:
    """Everything that `rules` have to say about `run`."""
    findings: list[Problem | Notice] = []
    for rule in rules:
        try:
            for finding in rule(run):
                findings.append(finding)
        except Unknown:
            continue
    return findings
