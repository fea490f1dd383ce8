"""RunConfig: everything a run can be told, typed, under PaddleNLP's 3.0 names. One flat list of fields."""

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


# Pydantic collects fields from the last base to the first: this order shows them in the order of GROUPS.
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
    """One run, as it was asked for. Frozen; `model_copy(update=...)` makes a changed one.

    One flat list for both scripts; `fields_of` says which of them a script has.

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

_FINETUNE_GROUPS = (InstructionFields, MethodFields, GenerationFields)
FINETUNE_ONLY: frozenset[str] = frozenset(name for group in _FINETUNE_GROUPS for name in group.model_fields)
# Fields of pretraining alone, each with what fine-tuning has in its place.
PRETRAIN_ONLY: dict[str, str] = {
    "input_dir": "instructions are given with --dataset_name_or_path",
    "split": "evaluation reads dev.json beside train.json",
    "data_impl": "instructions are read from json, csv or parquet",
    "data_cache": "instructions need no index",
    "share_folder": "instructions need no index",
    "eval_iters": "evaluation reads the whole dev set",
}

# What an evaluation measures: less is better of losses, more of scores of what was generated.
LOSSES = ("loss", "ppl")
SCORES = ("bleu", "rouge1", "rouge2", "rougeL", "exact_match")


def fields_of(entry: str) -> tuple[str, ...]:
    """The fields that the script of `entry` ("pretrain" or "finetune") has."""
    elsewhere = PRETRAIN_ONLY if entry == "finetune" else FINETUNE_ONLY
    return tuple(name for name in FIELD_NAMES if name not in elsewhere)
