"""The world-1 oracle: a training in a layout, proven equal to the same training in one process.

Both go through the product's own path (arguments, model, trainer) on CPU ranks over gloo, from the same weights, with the
same data order and global batch. Compared on every rank after every step: the loss of the global batch, the gradient norm
before clipping, every gradient, every weight and both Adam moments, and the evaluation loss (`compare.py`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.rehearse.case import Case, InOrder
from paddle_llm.rehearse.ranks import run_ranks

if TYPE_CHECKING:
    from paddle_llm.config.run_config import RunConfig
    from paddle_llm.rehearse.compare import Difference, Floor
    from paddle_llm.rehearse.record import RankRecord
    from paddle_llm.training.finetune import FinetuneData
    from paddle_llm.training.pretrain import PretrainData
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

TIMEOUT = 300.0


@dataclass(frozen=True)
class Reference:
    """One process.

    Attributes:
        record: what it saw.
        floor: (quantity, step) -> what rounding alone does to it, between two one-process runs.
        floor_seconds, seconds: what it took.
    """

    record: RankRecord
    floor: Floor
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """What came of a proof.

    Attributes:
        worst: the largest difference of each quantity.
        failures: what was not within its limit.
        compared: number of comparisons.
        seconds: of the layout's run; the reference's has its own.
    """

    case: Case
    worst: dict[str, Difference]
    failures: list[Difference]
    compared: int
    floor: Floor
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.failures and self.compared > 0


def reference_key(case: Case) -> str:
    """Cases with the same key have the same reference."""
    digest = hashlib.sha256()
    for part in (case.train, case.evaluation):
        digest.update(f"{len(part)} samples".encode())
        for sample in part:
            for name, values in sorted(sample.items()):
                digest.update(f"{name} {values.dtype} {values.shape}".encode())
                digest.update(np.ascontiguousarray(values).tobytes())
    config = case.alone().config.model_dump(mode="json")
    return json.dumps([case.entry, config, digest.hexdigest()], sort_keys=True)


def reference_of(case: Case, timeout: float = TIMEOUT) -> Reference:
    """Run the case in one process, twice with sums in another order.

    Raises:
        RankError: as `prove`.
        RuntimeError: a quantity was not recorded, and could not be compared with anything.
    """
    from paddle_llm.rehearse.compare import lacking, rounding_floor

    began = time.monotonic()
    alone, other = case.alone(), case.rounded_differently()
    (record,) = run_case(alone, timeout)
    missing = lacking(record, case.config.max_steps, bool(case.evaluation))
    if missing:
        raise RuntimeError(f"one process did not record {', '.join(missing)}")
    floor: Floor = {}
    if other is not None:
        floor = rounding_floor(record, run_case(other, timeout)[0])
    return Reference(record, floor, time.monotonic() - began)


def prove(
    case: Case,
    reference: Reference | None = None,
    *,
    limits: dict[str, float] | None = None,
    timeout: float = TIMEOUT,
) -> Verdict:
    """Run the case on the ranks of its layout and compare with one process.

    Args:
        reference: of a case with the same `reference_key`; None: run it.
        limits: of the first step, by quantity, in place of `compare.FIRST_STEP_LIMITS`.

    Raises:
        RankError: a rank raised, died or got stuck.
    """
    from paddle_llm.rehearse.compare import FIRST_STEP_LIMITS, compare, worst_of

    reference = reference or reference_of(case, timeout)
    began = time.monotonic()
    records = run_case(case, timeout)
    seconds = time.monotonic() - began
    found = compare(reference.record, records, reference.floor, FIRST_STEP_LIMITS | (limits or {}))
    failures = [difference for difference in found if not difference.passed]
    return Verdict(case, worst_of(found), failures, len(found), reference.floor, seconds)


def run_case(case: Case, timeout: float = TIMEOUT, env: dict[str, str] | None = None) -> list[RankRecord]:
    """What each rank of the case's layout saw, on the case's device."""
    device = case.config.device or "cpu"
    # On a GPU the proof is of float32, not of TF32, which rounds what is multiplied to 10 bits.
    env = {**({"NVIDIA_TF32_OVERRIDE": "0"} if device == "gpu" else {}), **(env or {})}
    return run_ranks(run_rank, case.layout.world_size, case, timeout=timeout, quiet=True, device=device, env=env)


def run_rank(case: Case) -> RankRecord:
    """One rank of the case's layout; called in a process of its own."""
    from paddle_llm.parallel.process.start import start_process

    start_process(case.config.device or "cpu", case.layout.world_size)
    from paddle_llm.rehearse.record import Recorder

    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="rehearse-") as folder:
        fault = _fault(case)
        if fault is not None:
            stack.enter_context(fault.patched())
        trainer = trainer_of(case, folder)
        recorder = Recorder.attach(trainer)
        trainer.train()
    return recorder.record


def _fault(case: Case):
    if case.fault is None:
        return None
    from paddle_llm.rehearse.faults import FAULTS

    return FAULTS[case.fault]


def trainer_of(case: Case, folder: str, **settings: Any) -> PretrainTrainer:
    """Build the trainer of a case through the product's own job assembly; it logs and evaluates at every step.

    Args:
        case: The case.
        folder: Output folder; no checkpoint is written.
        **settings: Fields of RunConfig that replace those set here.
    """
    import paddle

    from paddle_llm.training.arguments import training_arguments

    kind = import_module(f"paddle_llm.training.{case.entry}")
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
    # Cases that run in one process after another must name their parameters alike.
    with paddle.utils.unique_name.guard():
        return kind.make_trainer(config, case.layout, _data_of(case, config), args=args, facts=facts)


def _data_of(case: Case, config: RunConfig) -> PretrainData | FinetuneData:
    """Return the case's samples as the data of a job."""
    train = case.train[: config.max_steps * case.global_batch]
    if case.entry == "pretrain":
        from paddle_llm.training.pretrain import PretrainData

        return PretrainData(InOrder(train), InOrder(case.evaluation))
    from paddle_llm.peft.method import method_of
    from paddle_llm.peft.methods.prompt import with_prompt
    from paddle_llm.training.finetune import FinetuneData

    method, evaluation = method_of(config), case.evaluation
    if method.name == "prompt":
        train, evaluation = ([with_prompt(sample, method) for sample in part] for part in (train, evaluation))
    return FinetuneData(method, InOrder(train), InOrder(evaluation))
