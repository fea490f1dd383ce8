"""What the entry scripts do: read the config, prepare the host, start the job, train, evaluate, save.

What differs between pretraining and fine-tuning, from data and network to a trainer and from a trainer to files, is in
`pretrain.py` and `finetune.py`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_llm.config.help import help_text, wants_help
from paddle_llm.config.local_files.weights import has_weights
from paddle_llm.config.model_facts import find_model_folder
from paddle_llm.config.reader import Resolved, resolve, resolved_as_json
from paddle_llm.config.run_config import Entry, RunConfig
from paddle_llm.core.artifacts import RESOLVED_CONFIG
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError, exit_on_user_error
from paddle_llm.core.output import escape_unencodable
from paddle_llm.parallel.process.failure_detection import exit_on_lost_rank
from paddle_llm.parallel.process.parent import end_with_launcher, first_rank_reports
from paddle_llm.parallel.process.start import start_process

if TYPE_CHECKING:
    from paddlenlp.trainer import TrainingArguments

    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer


def main(argv: list[str] | None = None, entry: Entry = "pretrain") -> None:
    """Entry point of the scripts. Exit code 2 for a user's mistake, told by rank 0 alone."""
    argv = sys.argv[1:] if argv is None else argv
    escape_unencodable()
    if wants_help(argv):
        print(help_text(entry))
        return
    end_with_launcher()
    with exit_on_user_error(), exit_on_lost_rank():
        world_size = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
        with first_rank_reports():
            resolved = resolve(argv, world_size=world_size, entry=entry)
        for line in resolved.notices:
            say(line)
        _require_paddle()
        run(resolved, entry)


def _require_paddle() -> None:
    from importlib.util import find_spec

    if find_spec("paddle") is None:
        raise UserError(
            "Paddle is not installed. On a CPU: pip install 'paddle_llm[cpu]'. On a GPU: the line for your CUDA version in the README."
        )


def run(resolved: Resolved, entry: Entry) -> PretrainTrainer:
    """Run one job on this process's rank."""
    from paddle_llm.checkpoint.output_lock import release_output_folder

    config = resolved.config
    start_process(
        config.device,
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
    config, layout = resolved.config, resolved.layout
    from paddle_llm.checkpoint.folder import step_of
    from paddle_llm.training.arguments import training_arguments

    kind = import_module(f"paddle_llm.training.{entry}")
    args = training_arguments(config, layout)
    if layout.world_size > 1:
        say(f"{layout.world_size} ranks: {layout}")
    if resolved.facts is None:
        resolved = _with_downloaded_model(resolved)
    start = _choose_start(resolved, args)
    if config.do_train and start is None:
        _say_first_weights(config)
    trainer = kind.build_trainer(resolved, args)
    _check_resume(resolved, start, trainer, args.max_steps)
    _open_output(resolved, start)
    if start and step_of(start) >= args.max_steps:
        say(f"{start} has all {args.max_steps} steps already: nothing is left to train")
    if not config.do_train and not config.continue_training:
        say("random weights are evaluated: the folder's are read with --continue_training 1")
    if config.do_train:
        trainer.train(resume_from_checkpoint=start)
        kind.save(trainer, resolved)
    elif config.do_eval:
        trainer.evaluate()
    if config.do_predict:
        trainer.evaluate(trainer.predict_dataset, metric_key_prefix="test")
    return trainer


def _with_downloaded_model(resolved: Resolved) -> Resolved:
    """A built-in name that no folder stands for: its shape is known only after PaddleNLP has fetched it."""
    from paddle_llm.config.defaults import FUSED_WHY, fuses_rms_norm
    from paddle_llm.config.model_facts import read_model_facts
    from paddle_llm.models.configuration.hub import model_folder

    config, origins = resolved.config, resolved.origins
    facts = read_model_facts(model_folder(config.model_name_or_path, weights=config.continue_training))
    if config.use_fused_rms_norm is None:
        config = config.model_copy(update={"use_fused_rms_norm": fuses_rms_norm(str(config.device), facts)})
        origins = {**origins, "use_fused_rms_norm": f"derived: {FUSED_WHY}"}
    return replace(resolved, facts=facts, config=config, origins=origins)


def _choose_start(resolved: Resolved, args: TrainingArguments) -> Path | None:
    """On the first rank: lock the output folder and check it; on all: where to resume from. Nothing else is written yet."""
    from paddle_llm.checkpoint.folder import check_layout
    from paddle_llm.checkpoint.output_folder import check_writable, choose_start
    from paddle_llm.checkpoint.output_lock import hold_output_folder
    from paddle_llm.checkpoint.settings import check_settings
    from paddle_llm.parallel.process.first_rank import on_first_rank
    from paddle_llm.training.epochs import global_batch_of

    config = resolved.config

    def choose() -> str | None:
        check_writable(Path(config.output_dir))
        hold_output_folder(config.output_dir)
        start, said = choose_start(
            config.output_dir,
            do_train=config.do_train,
            overwrite=config.overwrite_output_dir,
            resume=config.resume_from_checkpoint,
            read=(config.model_name_or_path, config.tokenizer_name_or_path, config.lora_path, config.prefix_path),
        )
        for line in said:
            say(line)
        if start is not None:
            check_layout(start, resolved.layout, global_batch_of(args))
            for line in check_settings(start, resolved):
                say(line)
        return str(start) if start else None

    start = on_first_rank(choose)
    return Path(start) if start else None


def _check_resume(resolved: Resolved, start: Path | None, trainer: PretrainTrainer, steps: int) -> None:
    """Record the settings for the checkpoints of this run, and compare its length and data with the one it continues."""
    from paddle_llm.checkpoint.settings import changed_data_settings, check_length, record_of

    if not resolved.config.do_train:
        return
    trainer.settings = record_of(resolved, steps)
    if start is None:
        return
    for line in check_length(start, resolved, steps):
        say(line)
    trainer.check_resume(start, changed_data_settings(start, resolved))


def _say_first_weights(config: RunConfig) -> None:
    """Whose weights the first step has, where somebody may expect others."""
    name = config.model_name_or_path
    if config.continue_training:
        say(f"training starts from the weights of {name}")
        return
    folder = find_model_folder(name)
    if folder is not None and has_weights(folder):
        say(f"{name} holds weights; training starts from random ones (--continue_training 1 starts from them)")


def _open_output(resolved: Resolved, start: Path | None) -> None:
    """On the first rank, when nothing of the user's can be wrong any more: clear the folder, write config.resolved.json."""
    from paddle_llm.checkpoint.output_folder import open_output_folder
    from paddle_llm.parallel.process.first_rank import on_first_rank

    config = resolved.config

    def open_folder() -> None:
        overwrite = config.overwrite_output_dir
        for line in open_output_folder(config.output_dir, do_train=config.do_train, overwrite=overwrite, start=start):
            say(line)
        record = Path(config.output_dir) / RESOLVED_CONFIG
        if config.do_train or not record.exists():  # an evaluation leaves the training's record alone
            record.write_text(json.dumps(resolved_as_json(resolved), indent=1))

    on_first_rank(open_folder)
