"""Train a case on one rank, through the product's own job assembly. Import this after `start_process`."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import paddle

from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.config.run_config import RunConfig
from paddle_llm.peft.method import method_of
from paddle_llm.peft.methods.prompt import with_prompt
from paddle_llm.rehearse.case import Case, OrderedSamples
from paddle_llm.rehearse.faults import FAULTS
from paddle_llm.rehearse.record import RankRecord
from paddle_llm.rehearse.recorder import Recorder
from paddle_llm.training.arguments import training_arguments
from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

if TYPE_CHECKING:
    from paddle_llm.training.finetune import FinetuneData
    from paddle_llm.training.pretrain import PretrainData


def train_and_record(case: Case) -> RankRecord:
    """Train a case, with its fault, and return the record of this rank."""
    broken = FAULTS[case.fault].patched() if case.fault is not None else nullcontext()
    with broken, tempfile.TemporaryDirectory(prefix="rehearse-") as folder:
        trainer = trainer_of(case, folder)
        recorder = Recorder.attach(trainer)
        trainer.train()
    return recorder.record


def trainer_of(case: Case, folder: str, **settings: Any) -> PretrainTrainer:
    """Build the trainer of a case; it logs and evaluates at every step.

    Args:
        case: The case.
        folder: Output folder; no checkpoint is written.
        **settings: Fields of RunConfig that replace those set here.
    """
    # Only one of the two modules: importing the other one would take each rank half a second.
    job = import_module(f"paddle_llm.training.{case.entry}")
    config = case.config.model_copy(
        update={
            "output_dir": folder,
            "do_train": True,
            "do_eval": bool(case.evaluation),
            "do_predict": False,
            "evaluation_strategy": None,
            "logging_steps": 1,
            "eval_steps": 1,
            "save_strategy": "no",
            "report_to": ["none"],
            "disable_tqdm": True,
            "load_best_model_at_end": False,
            "early_stopping_patience": None,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "lora_dropout": 0.0,
            **settings,
        }
    )
    args = training_arguments(config, case.layout)
    facts = read_model_facts(config.model_name_or_path)
    # Cases that run in one process after another must give their parameters the same names.
    with paddle.utils.unique_name.guard():
        trainer: PretrainTrainer = job.make_trainer(
            config, case.layout, _data_of(case, config, job), args=args, facts=facts
        )
    return trainer


def _data_of(case: Case, config: RunConfig, job: ModuleType) -> PretrainData | FinetuneData:
    """Return the case's samples as the data of a job."""
    train = case.train[: config.max_steps * case.global_batch]
    if case.entry == "pretrain":
        pretrain_data: PretrainData = job.PretrainData(OrderedSamples(train), OrderedSamples(case.evaluation))
        return pretrain_data
    method, evaluation = method_of(config), case.evaluation
    if method.name == "prompt":
        train, evaluation = ([with_prompt(sample, method) for sample in part] for part in (train, evaluation))
    finetune_data: FinetuneData = job.FinetuneData(method, OrderedSamples(train), OrderedSamples(evaluation))
    return finetune_data
