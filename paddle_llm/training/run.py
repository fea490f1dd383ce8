"""Run one job: read the config, start the process, load data, train, evaluate, save.

`pretrain.py` and `finetune.py` contain the differences between the two kinds of jobs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_llm.checkpoint.folder import check_layout, step_of
from paddle_llm.checkpoint.output_folder import check_writable, open_output_folder
from paddle_llm.checkpoint.output_lock import hold_output_folder, release_output_folder
from paddle_llm.checkpoint.settings import changed_data_settings, check_length, check_settings, record_of
from paddle_llm.config.defaults import FUSED_WHY, fuses_rms_norm
from paddle_llm.config.help import help_text, wants_help
from paddle_llm.config.local_files.model_folder import find_model_folder, read_model_facts
from paddle_llm.config.local_files.weights import has_weights
from paddle_llm.config.reader import Resolved, resolve, resolved_as_json
from paddle_llm.config.run_config import Entry, RunConfig
from paddle_llm.core.artifacts import RESOLVED_CONFIG
from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.console import escape_unencodable, say
from paddle_llm.core.errors import UserError, exit_on_user_error
from paddle_llm.models.configuration.hub import model_folder
from paddle_llm.parallel.process.failure_detection import exit_on_lost_rank
from paddle_llm.parallel.process.first_rank import on_first_rank
from paddle_llm.parallel.process.parent import end_with_launcher, first_rank_reports
from paddle_llm.parallel.process.scheduler import translate_scheduler
from paddle_llm.parallel.process.start import start_process
from paddle_llm.parallel.process.stop_request import install_again, stop_on_signals
from paddle_llm.training.epochs import global_batch_of, set_position
from paddle_llm.training.launch.preflight import JOB_RULES, start_of
from paddle_llm.training.metrics.size import describe_size

if TYPE_CHECKING:
    from paddlenlp.trainer import TrainingArguments

    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer


def main(argv: list[str] | None = None, entry: Entry = "pretrain") -> None:
    """Run the job of the command line; the entry point of the scripts.

    A user's mistake ends every rank with exit code 2 and is reported by rank 0.

    Args:
        argv: Words of the command line; by default those of this process.
        entry: Kind of the job.
    """
    argv = sys.argv[1:] if argv is None else argv
    escape_unencodable()
    if wants_help(argv):
        print(help_text(entry))
        return
    end_with_launcher()
    with exit_on_user_error(), exit_on_lost_rank():
        line = translate_scheduler()
        if line is not None:
            say(line)
        world_size = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
        with first_rank_reports():
            resolved = resolve(argv, world_size=world_size, entry=entry, further_rules=JOB_RULES)
        for line in resolved.notices:
            say(line)
        if find_spec("paddle") is None:
            raise UserError(
                "Paddle is not installed. On a CPU: pip install 'paddle_llm[cpu]'. "
                "On a GPU: use the command for your CUDA version in docs/installation.md."
            )
        with stop_on_signals(resolved.config.save_on_exit):
            run(resolved, entry)


def run(resolved: Resolved, entry: Entry) -> PretrainTrainer:
    """Run one job on the rank of this process.

    Args:
        resolved: Configuration of the job.
        entry: Kind of the job.

    Returns:
        The trainer, after training and evaluation.
    """
    config = resolved.config
    start_process(
        str(config.device),
        resolved.layout.world_size,
        cpu_threads=config.cpu_threads,
        deterministic=config.deterministic,
        report=say,
    )
    try:
        return _run(resolved, entry)
    finally:
        release_output_folder()


def _run(resolved: Resolved, entry: Entry) -> PretrainTrainer:
    import paddle

    from paddle_llm.training.arguments import training_arguments
    from paddle_llm.training.rollback import train_with_rollbacks

    job = import_module(f"paddle_llm.training.{entry}")
    install_again()
    config, layout = resolved.config, resolved.layout
    args = training_arguments(config, layout)
    if layout.world_size > 1:
        say(f"{layout.world_size} ranks: {layout}")
    if resolved.facts is None:
        resolved = _with_downloaded_model(resolved)
    start = _choose_start(resolved, args)
    if config.do_train and start is None:
        _report_first_weights(config)
    data = job.load_data(resolved, args)

    def build(start: Path | None) -> PretrainTrainer:
        # A checkpoint may name tensors by their generated names, which count from zero in every trainer.
        with paddle.utils.unique_name.guard():
            trainer: PretrainTrainer = job.make_trainer(resolved.config, layout, data, args=args, facts=resolved.facts)
        _check_resume(resolved, start, trainer, args.max_steps)
        return trainer

    trainer = build(start)
    if config.do_train:
        say(describe_size(trainer.model, resolved, global_batch_of(args)))
    _open_output(resolved, start)
    if start and step_of(start) >= args.max_steps:
        say(f"{start} already has all {args.max_steps} steps: nothing to train")
    if not config.do_train and not config.continue_training:
        say("evaluating random weights; --continue_training 1 loads those of the folder")
    if config.do_train:
        first = [trainer]
        del trainer
        trainer = train_with_rollbacks(build, start, first)
        job.save(trainer, resolved)
    elif config.do_eval:
        trainer.evaluate()
    if config.do_predict:
        trainer.evaluate(trainer.predict_dataset, metric_key_prefix="test")
    return trainer


def _with_downloaded_model(resolved: Resolved) -> Resolved:
    """Add the facts of a built-in model without a local folder, which PaddleNLP downloads now."""
    config, origins = resolved.config, resolved.origins
    facts = read_model_facts(model_folder(config.model_name_or_path, weights=config.continue_training))
    if config.use_fused_rms_norm is None:
        config = config.model_copy(update={"use_fused_rms_norm": fuses_rms_norm(str(config.device), facts)})
        origins = {**origins, "use_fused_rms_norm": f"derived: {FUSED_WHY}"}
    return replace(resolved, facts=facts, config=config, origins=origins)


def _choose_start(resolved: Resolved, args: TrainingArguments) -> Path | None:
    """Return the checkpoint to resume from, or None. The first rank locks the output folder and writes nothing else.

    All ranks verify it. A damaged one is passed over, unless the user has named it.
    """
    from paddle_llm.checkpoint.training_state.verification import choose_verified
    from paddle_llm.training.trainers.start import Start

    config = resolved.config

    def choose(damaged: Mapping[Path, str]) -> tuple[Path | None, list[str]]:
        if not damaged:
            check_writable(Path(config.output_dir))
            hold_output_folder(config.output_dir)
        return start_of(config, damaged)

    start, lines = choose_verified(choose, config.verify_checkpoint)
    for line in lines:
        say(line)
    if start is None:
        return None
    for line in check_layout(start, resolved.layout, global_batch_of(args)) + check_settings(start, resolved):
        say(line)
    set_position(args, Start.of(start).position)
    return start


def _check_resume(resolved: Resolved, start: Path | None, trainer: PretrainTrainer, steps: int) -> None:
    """Record the settings for this run's checkpoints, and compare length and data with the resumed checkpoint."""
    if not resolved.config.do_train:
        return
    trainer.settings = record_of(resolved, steps)
    if start is None:
        return
    for line in check_length(start, resolved, steps):
        say(line)
    trainer.check_resume(start, changed_data_settings(start, resolved))


def _report_first_weights(config: RunConfig) -> None:
    """Report whether training starts from the folder's weights or from random ones, if the folder has weights."""
    name = config.model_name_or_path
    folder = find_model_folder(name)
    if config.continue_training:
        is_of_a_run = folder is not None and (folder.resolve().parent / RESOLVED_CONFIG).is_file()
        say(
            f"training starts from the weights of {name}"
            + (", with a new schedule and the first samples: its run is not resumed" if is_of_a_run else "")
        )
        return
    if folder is not None and has_weights(folder):
        say(f"training starts from random weights; --continue_training 1 starts from those of {name}")


def _open_output(resolved: Resolved, start: Path | None) -> None:
    """Clear the output folder and write config.resolved.json on the first rank, after all checks."""
    config = resolved.config

    def open_folder() -> None:
        overwrite = config.overwrite_output_dir
        for line in open_output_folder(config.output_dir, do_train=config.do_train, overwrite=overwrite, start=start):
            say(line)
        record = Path(config.output_dir) / RESOLVED_CONFIG
        if config.do_train or not record.exists():  # an evaluation keeps the record of the training
            write_atomically(record, json.dumps(resolved_as_json(resolved), indent=1).encode())

    on_first_rank(open_folder)
