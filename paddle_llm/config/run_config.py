"""RunConfig: all settings of a run as one flat list of typed fields, under the names of PaddleNLP 3.0."""

from __future__ import annotations

from typing import Literal

from paddle_llm.config.fields.base import Group
from paddle_llm.config.fields.data import DataFields
from paddle_llm.config.fields.finetune import GenerationFields, InstructionFields
from paddle_llm.config.fields.method import MethodFields
from paddle_llm.config.fields.model import ModelFields
from paddle_llm.config.fields.output import OutputFields
from paddle_llm.config.fields.parallel import ParallelFields
from paddle_llm.config.fields.training import TrainingFields

Entry = Literal["pretrain", "finetune"]
SCRIPTS: dict[str, str] = {"pretrain": "run_pretrain.py", "finetune": "finetune_generation.py"}

GROUPS: tuple[type[Group], ...] = (
    ModelFields,
    DataFields,
    InstructionFields,
    MethodFields,
    TrainingFields,
    GenerationFields,
    ParallelFields,
    OutputFields,
)


# Pydantic collects fields from the last base to the first, so that this order gives the order of GROUPS.
class RunConfig(
    OutputFields,
    ParallelFields,
    GenerationFields,
    TrainingFields,
    MethodFields,
    InstructionFields,
    DataFields,
    ModelFields,
):
    """Settings of one run. Frozen; `model_copy(update=...)` returns a changed copy.

    Both scripts share the list of fields; `fields_of` returns those of one script.

    A config from `reader.resolve` is complete: degrees, `device`, `min_learning_rate` and all other derived values are those
    that the run uses. A config built in Python has the field defaults.
    """

    @property
    def sharding_stage(self) -> int:
        """Stage of sharding: 0 (none), 1, 2 or 3."""
        return next((int(word[-1]) for word in self.sharding.split() if word in ("stage1", "stage2", "stage3")), 0)

    @property
    def sharding_offload(self) -> bool:
        """Whether sharded optimizer states, and with stage 3 weights, are kept in host memory while they are not used.

        Requested by `--sharding "stage2 offload"`. The reader turns it off on a CPU.
        """
        return self.sharding_stage > 0 and "offload" in self.sharding.split()


FIELD_NAMES: tuple[str, ...] = tuple(RunConfig.model_fields)

_FINETUNE_GROUPS = (InstructionFields, MethodFields, GenerationFields)
FINETUNE_ONLY: frozenset[str] = frozenset(name for group in _FINETUNE_GROUPS for name in group.model_fields)
# Field of pretraining only -> what fine-tuning uses instead.
PRETRAIN_ONLY: dict[str, str] = {
    "input_dir": "instructions are given with --dataset_name_or_path",
    "split": "evaluation reads dev.json beside train.json",
    "data_impl": "instructions are read from json, csv or parquet",
    "data_cache": "instructions need no index",
    "share_folder": "instructions need no index",
    "eval_iters": "evaluation reads the whole dev set",
}

# Metrics of an evaluation: smaller losses are better, greater scores of generated answers are better.
LOSSES = ("loss", "ppl")
SCORES = ("bleu", "rouge1", "rouge2", "rougeL", "exact_match")


def fields_of(entry: str) -> tuple[str, ...]:
    """Return the names of the fields that the script of `entry` ("pretrain" or "finetune") has."""
    elsewhere = PRETRAIN_ONLY if entry == "finetune" else FINETUNE_ONLY
    return tuple(name for name in FIELD_NAMES if name not in elsewhere)
