"""Fields for the output of a run, and for resuming it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paddle_llm.config.fields.base import PATH, Group


class OutputFields(Group):
    """Output and resume"""

    output_dir: str = Field(
        "", json_schema_extra=PATH, description="Folder for metrics, curves and checkpoints. Required."
    )
    overwrite_output_dir: bool = Field(False, description="Start from the beginning in a folder that is not empty.")
    resume_from_checkpoint: str | None = Field(
        None,
        json_schema_extra=PATH,
        description="Folder checkpoint-<step> to resume from. Unset: the newest complete one in --output_dir, if any.",
    )
    resume_with_changed_settings: bool = Field(
        False,
        description="Resume even if settings that change the training differ from the checkpoint; each is reported. Includes "
        "--allow_schedule_change.",
    )
    allow_schedule_change: bool = Field(
        False,
        description="Resume even if the learning-rate schedule differs from the checkpoint (--num_train_epochs, --max_steps, warm-up, "
        "--learning_rate). The run reports the old and new number of steps and the learning rate where it continues.",
    )
    logging_steps: int = Field(10, ge=1, description="Steps between rows of metrics.jsonl (PaddleNLP: 500).")
    logging_first_step: bool = Field(False, description="Also write a row for the first step.")
    report_to: list[str] = Field(
        ["visualdl"],
        description="Programs that receive curves: visualdl, wandb, tensorboard, all or none. metrics.jsonl is always written.",
    )
    run_name: str | None = Field(None, description="Name of the run for wandb.")
    disable_tqdm: bool = Field(False, description="Do not show a progress bar.")
    save_strategy: Literal["no", "steps", "epoch"] = Field(
        "steps", description="When checkpoints are written. Fine-tuning: every epoch, unless --save_steps is given."
    )
    save_steps: int = Field(500, ge=1, description="Steps between checkpoints.")
    save_on_exit: bool = Field(
        True,
        description="At SIGTERM, SIGUSR1 or the first Ctrl-C: write a checkpoint at the end of the step and exit with code 75.",
    )
    save_total_limit: int | None = Field(None, ge=1, description="Number of checkpoints to keep. Unset: all.")
    model_format: Literal["paddlenlp", "hf"] = Field(
        "paddlenlp", description="Format of the folder model/. hf: transformers can load it."
    )
    async_save: bool = Field(
        False,
        description="Write checkpoints in another process while the training goes on. Each rank copies what it saves to host "
        "memory first: once, or twice if a save begins before the last one has ended.",
    )
    save_failure: Literal["stop", "continue"] = Field(
        "stop",
        description="What happens if a checkpoint cannot be written, such as on a full disk. The previous one stays in both cases.",
    )
    verify_checkpoint: Literal["fast", "full"] = Field(
        "full",
        description="What is checked before resuming. full: the digest of every file, and that weights are finite; fast: the "
        "sizes of all files and the index.",
    )
    skip_profile_timer: bool = Field(True, description="false: print Paddle's timers of forward, backward and step.")
