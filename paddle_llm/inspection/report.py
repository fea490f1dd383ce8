"""Report of `paddle-llm check-model` as data: sections with facts and findings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from paddle_llm.core.console import collected
from paddle_llm.core.errors import UserError


class Level(str, Enum):
    """Meaning of a finding for a run that reads the folder."""

    AGREES = "agrees"  # a comparison passed
    NOTE = "note"  # a run prints this message and continues
    NOT_COMPARED = "not compared"  # a comparison was not possible or not requested
    DIFFERS = "differs"  # a comparison failed
    REFUSED = "refused"  # a run stops with this error


@dataclass(frozen=True)
class Finding:
    """One line about a folder.

    Attributes:
        level: Meaning of the line.
        text: The line.
    """

    level: Level
    text: str


@dataclass
class Section:
    """Facts and findings about one part of a folder.

    Attributes:
        title: "model", "weights", "tokenizer" ...
        facts: Values by name, ready for JSON.
        findings: Ignored, refused and compared parts.
    """

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, level: Level, text: str) -> None:
        """Add a finding once."""
        finding = Finding(level, text)
        if finding not in self.findings:
            self.findings.append(finding)

    @contextmanager
    def collect_messages(self) -> Iterator[None]:
        """Add messages that the body prints as notes. A UserError ends the body and is added as a refusal."""
        with collected() as lines:
            try:
                yield
            except UserError as error:
                self.add(Level.REFUSED, str(error))
            finally:
                for line in lines:
                    self.add(Level.NOTE, line)


@dataclass
class Report:
    """All sections of one folder.

    Attributes:
        folder: Folder as the user named it.
        sections: Sections in the order of printing.
    """

    folder: str
    sections: list[Section] = field(default_factory=list)

    def has(self, level: Level) -> bool:
        """Return whether a section has a finding of this level."""
        return any(finding.level is level for section in self.sections for finding in section.findings)

    @property
    def exit_code(self) -> int:
        """Exit code: 2 if a part is refused, 1 if a comparison failed, else 0."""
        return 2 if self.has(Level.REFUSED) else 1 if self.has(Level.DIFFERS) else 0

    def as_dict(self) -> dict[str, Any]:
        """Return the report ready for JSON."""
        sections = {
            section.title: {
                **section.facts,
                "findings": [{"level": finding.level.value, "text": finding.text} for finding in section.findings],
            }
            for section in self.sections
        }
        return {"folder": self.folder, "exit_code": self.exit_code, **sections}
