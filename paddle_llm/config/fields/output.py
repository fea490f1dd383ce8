"""Fields that say what is written, when and where, and how a run continues."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paddle_llm.config.fields.base import PATH, Group


class OutputFields(Group):
    """Output and resume"""

    output_dir: str = Field(
        "", json_schema_extra=PATH, description="Folder for metrics, curves and checkpoints. Required."
    )
    overwrite_output_dir: bool = Field(False, description="Start anew in a folder that is not empty.")
    resume_from_checkpoint: str | None = Field(
        None,
        json_schema_extra=PATH,
        description="A checkpoint-<step> folder. Absent: the newest complete one in --output_dir, if any.",
    )
    resume_with_changed_settings: bool = Field(
        False,
        description="Continue a checkpoint although settings that change the training differ; each is reported.",
    )
    logging_steps: int = Field(10, ge=1, description="Steps between rows of metrics.jsonl (PaddleNLP: 500).")
    logging_first_step: bool = Field(False, description="Write a row for the first step, too.")
    report_to: list[str] = Field(
        ["visualdl"],
        description="Where curves go: visualdl, wandb, tensorboard, all or none. metrics.jsonl is always written.",
    )
    run_name: str | None = Field(None, description="Name of the run for wandb.")
    disable_tqdm: bool = Field(False, description="No progress bar.")
    save_strategy: Literal["no", "steps", "epoch"] = Field(
        "steps", description="When checkpoints are written. Fine-tuning: every epoch, unless --save_steps is given."
    )
    save_steps: int = Field(500, ge=1, description="Steps between checkpoints.")
    save_total_limit: int | None = Field(None, ge=1, description="Keep this many checkpoints. Absent: all.")
    model_format: Literal["paddlenlp", "hf"] = Field(
        "paddlenlp", description="Format of the folder model/. hf: transformers loads it as it is."
    )
    unified_checkpoint: bool = Field(
        False, description="PaddleNLP's checkpoint format that does not depend on the layout."
    )
    unified_checkpoint_config: str = Field("", description="Switches of that format, separated by spaces.")
    skip_profile_timer: bool = Field(True, description="false: print Paddle's timers of forward, backward and step.")
