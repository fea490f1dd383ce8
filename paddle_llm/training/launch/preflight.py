"""Checks of a job on this machine that belong to no field: reported together with the mistakes of the config.

They run before Paddle is imported and change nothing. What other jobs may change meanwhile is checked again later.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from paddle_llm.checkpoint.output_folder import choose_start
from paddle_llm.config.rules.engine import Findings, Problem, Rule, Run
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.errors import UserError, is_first_rank
from paddle_llm.data.tokenizer import require_tokenizer


def tokenizer_is_complete(run: Run) -> Findings:
    """The folder of the tokenizer, by default that of the model, contains one."""
    given, model = run.config.tokenizer_name_or_path, run.config.model_name_or_path
    folder = given or str(run.folder or model)
    if not folder or not os.path.isdir(folder):  # an absent folder is reported by the rules of config/
        return
    try:
        require_tokenizer(folder)
    except UserError as error:
        if given:
            yield Problem(str(error))
        else:
            yield Problem(
                f"tokenizer_name_or_path is not set, and the model folder {folder} has no tokenizer. Give a tokenizer folder. To "
                "train one, run paddle-llm tokenizer train --input FILES --output_dir tokenizer --vocab_size N"
            )


def output_folder_is_usable(run: Run) -> Findings:
    """The output folder is writable, and the job can start or resume in it."""
    config = run.config
    if not is_first_rank():  # ranks would disturb each other
        return
    try:
        start_of(config)
    except UserError as error:
        yield Problem(str(error))


def start_of(config: RunConfig, damaged: Mapping[Path, str] | None = None) -> tuple[Path | None, list[str]]:
    """Return the checkpoint from which a job starts (None for the first step), and lines to report.

    Args:
        config: Configuration of the job.
        damaged: Checkpoints that a full verification has found to be damaged, and what is wrong with them.

    Raises:
        UserError: If the output folder or the checkpoint cannot be used.
    """
    return choose_start(
        config.output_dir,
        do_train=config.do_train,
        overwrite=config.overwrite_output_dir,
        resume=config.resume_from_checkpoint,
        inputs=(config.model_name_or_path, config.tokenizer_name_or_path, config.lora_path, config.prefix_path),
        damaged=damaged,
    )


JOB_RULES: list[Rule] = [tokenizer_is_complete, output_folder_is_usable]
