"""RunConfig: everything a run can be told, typed, under PaddleNLP's 3.0 names. One flat list of fields."""

from __future__ import annotations

from paddle_llm.config.groups.base import Group
from paddle_llm.config.groups.data import DataFields
from paddle_llm.config.groups.model import ModelFields
from paddle_llm.config.groups.output import OutputFields
from paddle_llm.config.groups.parallel import ParallelFields
from paddle_llm.config.groups.training import TrainingFields

GROUPS: tuple[type[Group], ...] = (ModelFields, DataFields, TrainingFields, ParallelFields, OutputFields)


# Pydantic collects fields from the last base to the first: this order shows them in the order of GROUPS.
class RunConfig(OutputFields, ParallelFields, TrainingFields, DataFields, ModelFields):
    """One run, as it was asked for. Frozen; `model_copy(update=...)` makes a changed one.

    A config that came from `reader.resolve` is complete: degrees, `device`, `min_learning_rate` and whatever else
    was derived stand in it as they are used. One built by hand holds the defaults of the groups.
    """

    @property
    def sharding_stage(self) -> int:
        """0 (no sharding), 1, 2 or 3."""
        return next((int(word[-1]) for word in self.sharding.split() if word in ("stage1", "stage2", "stage3")), 0)

    @property
    def sharding_offload(self) -> bool:
        """`--sharding "stage2 offload"`: what is sharded and not at work waits in host memory: optimizer states, and in
        stage 3 weights. False on a CPU once the reader has seen it."""
        return self.sharding_stage > 0 and "offload" in self.sharding.split()


FIELD_NAMES: tuple[str, ...] = tuple(RunConfig.model_fields)
