"""The checkpoint from which a training resumes, as far as it is known before the network is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddle_llm.checkpoint.folder import is_old, read_manifest
from paddle_llm.checkpoint.format.manifest import read_json
from paddle_llm.checkpoint.format.state import CONVERTED_FROM, STATE, decode
from paddle_llm.config.layout import Layout
from paddle_llm.core.artifacts import METER_STATE
from paddle_llm.core.json_files import read_json_object
from paddle_llm.training.epochs import Position


@dataclass(frozen=True)
class Start:
    """A checkpoint from which a training resumes.

    Attributes:
        folder: Its folder.
        layout: Layout that wrote it.
        step: Optimizer step after which it was written.
        is_old: Whether it is of version 0.2 or earlier.
        state: Content of state.json; {} in an old checkpoint.
    """

    folder: Path
    layout: Layout
    step: int
    is_old: bool
    state: dict[str, Any] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(folder: str | Path) -> Start:
        """Open a checkpoint.

        Raises:
            UserError: If it is incomplete.
        """
        folder = Path(folder)
        manifest, old = read_manifest(folder), is_old(folder)
        state = {} if old else decode(read_json(folder, STATE), _no_arrays)
        return Start(folder, Layout(**manifest["layout"]), manifest["step"], old, state)

    @property
    def position(self) -> Position:
        """Steps and samples so far. An old checkpoint resumes with the same global batch, so that 0 is right for it."""
        return Position() if self.is_old else Position(self.step, self.state["consumed_samples"])

    @property
    def has_random_states(self) -> bool:
        """Whether the ranks' random states were saved; a checkpoint of PaddleNLP that was converted has none."""
        return CONVERTED_FROM not in self.state

    def meter(self) -> dict[str, Any]:
        """Return the state of the meter."""
        found = read_json_object(self.folder / METER_STATE) if self.is_old else self.state["meter"]
        return dict(found)


def _no_arrays(key: str) -> Any:
    raise KeyError(key)
