"""The one-process oracle: check that a training in a layout equals the same training in one process.

Both use the product's own job assembly on CPU ranks over gloo, with the same weights, order of samples and global
batch. After every step these are compared on every rank: the loss of the global batch, the gradient norm before
clipping, every gradient, every weight and both Adam moments, and the evaluation loss (`compare.py`).
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
    from paddle_llm.rehearse.faults import Fault
    from paddle_llm.rehearse.record import RankRecord
    from paddle_llm.training.finetune import FinetuneData
    from paddle_llm.training.pretrain import PretrainData
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

TIMEOUT = 300.0


@dataclass(frozen=True)
class Reference:
    """The training in one process.

    Attributes:
        record: Record of the training.
        floor: Differences that rounding causes between two runs in one process, by (quantity, step).
        seconds: Time of both runs.
    """

    record: RankRecord
    floor: Floor
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    Attributes:
        case: Training that was compared.
        worst: Largest difference of each quantity.
        failures: Differences that exceed their limits.
        compared: Number of comparisons.
        floor: Rounding floor of the reference.
        seconds: Time of the layout's run, without the reference.
    """

    case: Case
    worst: dict[str, Difference]
    failures: list[Difference]
    compared: int
    floor: Floor
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether something was compared and every difference is within its limit."""
        return not self.failures and self.compared > 0


def reference_key(case: Case) -> str:
    """Return a key that is equal for cases with the same reference."""
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
    """Run a case in one process twice, the second time with another order of sums.

    Args:
        case: The case.
        timeout: Seconds for one run.

    Raises:
        RankError: If the process raises, dies or does not finish.
        RuntimeError: If a quantity is not recorded, so that it could not be compared.
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
    """Run a case on the ranks of its layout and compare it with one process.

    Args:
        case: The case.
        reference: Reference of a case with the same `reference_key`; by default it is run here.
        limits: Limits of the first step by quantity, instead of those of `compare.FIRST_STEP_LIMITS`.
        timeout: Seconds for one run.

    Raises:
        RankError: If a rank raises, dies or does not finish.
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
    """Run a case on its device and return the record of each rank.

    Args:
        case: The case.
        timeout: Seconds for the run.
        env: Environment variables of the ranks.
    """
    device = case.config.device or "cpu"
    # On a GPU float32 is compared, not TF32, which rounds factors to 10 bits.
    env = {**({"NVIDIA_TF32_OVERRIDE": "0"} if device == "gpu" else {}), **(env or {})}
    return run_ranks(run_rank, case.layout.world_size, case, timeout=timeout, quiet=True, device=device, env=env)


def run_rank(case: Case) -> RankRecord:
    """Run one rank of a case in its own process."""
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


def _fault(case: Case) -> Fault | None:
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
