"""The jobs that are killed: short trainings on every layout and method, started in forks or by Paddle's launcher."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.ranks import RankError, run_ranks
from tests.checkpoint.soak.moments import Kill, Records
from tests.checkpoint.soak.rank import ROOT, VARIABLE, run_rank
from tests.helpers.corpus import write_corpus
from tests.helpers.finetune_jobs import VOCABULARY, flags_of, make_instructions
from tests.helpers.models.tiny import write_llama

ONE = "one process"
LAYOUTS = {
    "dp2": Layout(data=2),
    "sharding2 stage 2 x tp2": Layout(sharding=2, sharding_stage=2, tensor=2),
    "pp2 x sharding2 stage 2": Layout(sharding=2, sharding_stage=2, pipeline=2),
    "stage 3": Layout(sharding=2, sharding_stage=3),
    ONE: Layout(),
}
KILLED_LAYOUTS = tuple(name for name in LAYOUTS if name != ONE)
PRETRAINING, LORA = "pretraining", "packed LoRA"
METHODS = (PRETRAINING, LORA)
STEPS, GLOBAL_BATCH, SEQUENCE, EVAL_SAMPLES = 10, 4, 32, 4
# Rows, evaluations and checkpoints of different steps, so that a checkpoint lies within the window of a row.
SCHEDULE = {
    "max_steps": STEPS,
    "logging_steps": 2,
    "save_steps": 3,
    "eval_steps": 4,
    "save_total_limit": 2,
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "max_grad_norm": 0.5,
}


@dataclass(frozen=True)
class Settings:
    """What a job trains.

    Attributes:
        method: One of METHODS.
        layout: One of LAYOUTS.
        dropout: Dropout of LoRA.
        micro_batch: Samples of a micro-batch.
        workers: Processes of each rank that load data; only under the launcher.
    """

    method: str
    layout: str
    dropout: float = 0.0
    micro_batch: int = 1
    workers: int = 0

    @property
    def ranks(self) -> int:
        return LAYOUTS[self.layout].world_size

    @property
    def script(self) -> Path:
        return ROOT / ("run_pretrain.py" if self.method == PRETRAINING else "finetune_generation.py")

    @property
    def result(self) -> str:
        """Name of the folder with the trained weights."""
        return "model" if self.method == PRETRAINING else "adapter"

    def _eval_iterations(self) -> int:
        """Return the number of batches with which every layout evaluates the same samples."""
        layout = LAYOUTS[self.layout]
        # A pipeline evaluates all micro-batches of a step at once.
        batch = GLOBAL_BATCH // layout.data_world_size if layout.pipeline > 1 else 1
        return EVAL_SAMPLES // layout.data_world_size // batch

    def flags(self, data: Path, output: Path) -> list[str]:
        layout = LAYOUTS[self.layout]
        changes: dict[str, Any] = SCHEDULE | {
            "per_device_train_batch_size": self.micro_batch,
            "per_device_eval_batch_size": 1,
            "gradient_accumulation_steps": GLOBAL_BATCH // self.micro_batch // layout.data_world_size,
            "dataloader_num_workers": self.workers,
        }
        for name, degree in (("tensor", layout.tensor), ("pipeline", layout.pipeline), ("sharding", layout.sharding)):
            changes[f"{name}_parallel_degree"] = degree if degree > 1 else None
        changes["sharding"] = f"stage{layout.sharding_stage}" if layout.sharding_stage else None
        if self.method == LORA:
            lora = {"lora": True, "lora_rank": 4, "lora_dropout": self.dropout, "zero_padding": True}
            return flags_of(data, output, **(changes | lora))
        pretraining = {
            **{"model_name_or_path": data / "tied", "tokenizer_name_or_path": data / "llama", "max_length": None},
            **{"dataset_name_or_path": None, "input_dir": data / "corpus", "split": "90,10,0"},
            **{"max_seq_length": SEQUENCE, "eval_iters": self._eval_iterations()},
        }
        return flags_of(data, output, **(changes | pretraining))


def make_data(folder: Path) -> Path:
    """Write the data and the models of all jobs; return the folder."""
    make_instructions(folder)
    shape = {"hidden_size": 32, "intermediate_size": 48}
    write_llama(folder / "llama", vocab_size=VOCABULARY, num_key_value_heads=2, **shape)
    # A tied head, and for tensor parallelism a padded vocabulary and an undivided key-value head.
    tied = {"vocab_size": VOCABULARY + 1, "tie_word_embeddings": True, "num_key_value_heads": 1}
    write_llama(folder / "tied", **tied, **shape)
    draw = np.random.default_rng(0)
    documents = [draw.integers(5, VOCABULARY, int(draw.integers(5, 60))) for _ in range(120)]
    (folder / "corpus").mkdir()
    write_corpus(folder / "corpus/numbers", documents)
    return folder


@dataclass
class Attempt:
    """One start of a job, and how it ended.

    Attributes:
        number: Number of the attempt, 1 for the first.
        layout: Its layout.
        planned: The SIGKILL that was planned.
        killed: Whether it happened.
        completed: Whether all ranks ended with success.
        started_from: Step of the checkpoint from which it resumed, 0 for none; None if it did not come so far.
        output: End of what the ranks printed on stderr.
    """

    number: int
    layout: str
    planned: Kill | None
    killed: bool = False
    completed: bool = False
    started_from: int | None = None
    output: str = field(default="", repr=False)


@dataclass
class Job:
    """A training in an output folder, which may be started several times.

    Attributes:
        data: Folder of `make_data`.
        folder: Folder of the job.
        launcher: Whether Paddle's launcher starts the ranks; else they are forked.
    """

    data: Path
    folder: Path
    launcher: bool = False

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.attempts: list[Attempt] = []

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def records(self, attempt: int) -> Records:
        return Records(self.folder, attempt)

    def start(self, settings: Settings, kill: Kill | None = None) -> Attempt:
        """Start the job, and wait until it has ended."""
        attempt = Attempt(len(self.attempts) + 1, settings.layout, kill)
        self.attempts.append(attempt)
        records = self.records(attempt.number)
        records.folder.mkdir()
        words = [str(settings.script), *settings.flags(self.data, self.output)]
        rank_settings: dict[str, Any] = {
            "records": str(self.folder),
            "attempt": attempt.number,
            "output": str(self.output),
        }
        rank_settings["kill"] = asdict(kill) if kill else None
        run = self._launch if self.launcher else self._fork
        attempt.completed, attempt.output = run(words, json.dumps(rank_settings), settings.ranks)
        attempt.killed = records.read("killed") is not None
        steps = {records.read("started from", rank) for rank in range(settings.ranks)} - {None}
        assert len(steps) <= 1, f"the ranks started from steps {steps}"
        attempt.started_from = next(iter(steps), None)
        return attempt

    @staticmethod
    def _fork(words: list[str], settings_json: str, ranks: int) -> tuple[bool, str]:
        try:
            run_ranks(run_rank, ranks, words, settings_json, timeout=240, grace=60, quiet=True)
        except RankError as error:
            return False, f"{error}\n" + "\n".join(one.stderr[-1500:] for one in error.outcomes)
        return True, ""

    def _launch(self, words: list[str], settings_json: str, ranks: int) -> tuple[bool, str]:
        logs = self.records(len(self.attempts)).folder / "logs"
        rank = str(Path(__file__).with_name("rank.py"))
        launch = [sys.executable, "-u", "-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks)]
        environment = {**os.environ, VARIABLE: settings_json, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*launch, "--log_dir", str(logs), rank, *words],
            **{"cwd": self.folder, "env": environment, "timeout": 300, "check": False},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        printed = (log.read_text(errors="replace")[-1500:] for log in sorted(logs.glob("workerlog.*")))
        return done.returncode == 0, "\n".join(printed)

    def remove(self) -> None:
        shutil.rmtree(self.folder)
