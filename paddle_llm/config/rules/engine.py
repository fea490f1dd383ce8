"""Rules between fields: functions that look at a Run and yield problems and notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig
from paddle_llm.families.facts import ModelFacts


@dataclass(frozen=True)
class Problem:
    """A mistake that stops the run. `text` says what is wrong, where, and what to do."""

    text: str


@dataclass(frozen=True)
class Notice:
    """Information for the user that does not stop the run. It is printed once at the start."""

    text: str


Findings = Iterator[Problem | Notice]


class Unknown(Exception):
    """Raised if a rule reads a value that is not known because of another mistake. The rule is then skipped."""


class MaskedConfig(RunConfig):
    """A config whose invalid fields raise Unknown when read, so that one mistake is not reported again by every rule."""

    _invalid: frozenset[str] = PrivateAttr(frozenset())

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in RunConfig.model_fields and name in self._invalid:
            raise Unknown(name)
        return value


def masked(config: RunConfig, invalid: frozenset[str]) -> MaskedConfig:
    """Return a copy of `config` that raises Unknown when a field of `invalid` is read."""
    copy = MaskedConfig.model_construct(config.model_fields_set, **dict(config))
    copy._invalid = invalid
    return copy


@dataclass(frozen=True)
class Run:
    """The run that rules check.

    Attributes:
        config: Values as given, with field and entry defaults; nothing derived yet.
        requested: Names of the fields that the user set.
        world_size: Number of ranks of the job.
        device: "gpu" or "cpu".
        entry: "pretrain" or "finetune".
        known_layout: Layout; None if the degrees are wrong.
        known_facts: Shape of the model; None if it is not known.
        folder: Folder on this machine that is used for a built-in model name; None if the name itself is used.
        is_local: Whether the run is for this machine, so that its folders can be checked.
    """

    config: RunConfig
    requested: frozenset[str]
    world_size: int
    device: str
    entry: str
    known_layout: Layout | None
    known_facts: ModelFacts | None
    folder: Path | None = None
    is_local: bool = False

    @property
    def layout(self) -> Layout:
        """Layout.

        Raises:
            Unknown: If the degrees are wrong.
        """
        if self.known_layout is None:
            raise Unknown("layout")
        return self.known_layout

    @property
    def facts(self) -> ModelFacts:
        """Shape of the model.

        Raises:
            Unknown: If it is not known.
        """
        if self.known_facts is None:
            raise Unknown("facts")
        return self.known_facts


Rule = Callable[[Run], Findings]


def fine_tuning(rule: Rule) -> Rule:
    """Run the rule only for fine-tuning."""
    return _only_for("finetune", rule)


def pretraining(rule: Rule) -> Rule:
    """Run the rule only for pretraining."""
    return _only_for("pretrain", rule)


def _only_for(entry: str, rule: Rule) -> Rule:
    @wraps(rule)
    def restricted(run: Run) -> Findings:
        if run.entry == entry:
            yield from rule(run)

    return restricted


def check(run: Run, rules: list[Rule]) -> list[Problem | Notice]:
    """Return the findings of all rules. A rule that reads an unknown value keeps the findings it made before."""
    findings: list[Problem | Notice] = []
    for rule in rules:
        try:
            for finding in rule(run):
                findings.append(finding)
        except Unknown:
            continue
    return findings
