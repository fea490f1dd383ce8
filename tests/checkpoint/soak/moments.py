"""The moments at which a rank of a job may be killed, counted in each rank; at one of them the rank kills itself, or all ranks.

A moment is the n-th event of a phase while one step is computed. Nothing depends on time, so a kill can be repeated.

| phase | event |
|---|---|
| start | a file of the output folder is opened, written, renamed or removed before the first step |
| forward, evaluation | a layer without sublayers begins |
| backward | a weight has its gradient |
| accumulation | a micro-batch is complete, and it is not the last one of the step |
| optimizer | the update begins, a weight is updated, the update is complete |
| rows | a file of the output folder is opened or written between two steps |
| save | the same while a checkpoint is written |
| rotation | the same while old checkpoints are removed |
| end | the same after the last step: the trained model is written |
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

_CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}  # of Python's audit events
PHASES = ("start", "forward", "backward", "accumulation", "optimizer", "evaluation", "rows", "save", "rotation", "end")


@dataclass(frozen=True)
class Kill:
    """A SIGKILL.

    Attributes:
        rank: Rank that reaches the moment.
        step: Step that is computed, 1 for the first; 0 before it.
        phase: One of PHASES.
        number: Number of the event, 1 for the first of its phase in this step.
        whom: "rank", "all" ranks, or "launcher": all ranks and the process that started them.
    """

    rank: int
    step: int
    phase: str
    number: int
    whom: str = "rank"

    def __str__(self) -> str:
        who = {"rank": f"rank {self.rank}", "all": "all ranks", "launcher": "launcher and ranks"}[self.whom]
        return f"{who} at event {self.number} of {self.phase} in step {self.step}"


class Records:
    """Files that the ranks of an attempt write for the judge, beside the job's output folder."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self.folder = folder / f"attempt-{attempt:03}"

    def file(self, name: str, rank: int | None = None) -> Path:
        return self.folder / (name if rank is None else f"{name}-{rank}")

    def write(self, name: str, content: Any, rank: int | None = None) -> None:
        temporary = self.file(f"{name}.{os.getpid()}", rank)
        temporary.write_text(json.dumps(content))
        temporary.replace(self.file(name, rank))

    def read(self, name: str, rank: int | None = None) -> Any:
        file = self.file(name, rank)
        return json.loads(file.read_text()) if file.exists() else None


class Moments:
    """Counts the events of this rank, and kills.

    Args:
        records: Files of the attempt.
        output: Output folder of the job.
        kill: The SIGKILL; None to count only.
    """

    def __init__(self, records: Records, output: Path, kill: Kill | None) -> None:
        self.records, self.output, self.kill = records, str(output), kill
        self.rank = int(os.environ.get("PADDLE_TRAINER_ID", "0"))
        self.ranks = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
        self.step, self.phase = 0, "start"  # of events of files
        self.counts: Counter[tuple[int, str]] = Counter()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        records.write("pid", self._pid, self.rank)
        self._samples = records.file("samples", self.rank).open("w", buffering=1)
        sys.addaudithook(self._on_audit)

    def happens(self, phase: str) -> None:
        """Count an event of a phase in the current step."""
        if os.getpid() != self._pid:  # a worker that loads data
            return
        with self._lock:
            self.counts[self.step, phase] += 1
            found = (self.rank, self.step, phase, self.counts[self.step, phase])
        kill = self.kill
        if kill is not None and found == (kill.rank, kill.step, kill.phase, kill.number):
            self._kill(kill)

    def on_file(self, operation: str, path: Path) -> None:
        """Count an operation of `core/durable_files.py`."""
        if str(path).startswith(self.output):
            self.happens(self.phase)

    def _on_audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _CHANGES or not isinstance(arguments[0], (str, os.PathLike)):
            return
        name = os.fspath(arguments[0])
        removed_below = event in ("os.remove", "os.rmdir") and not os.path.isabs(name)  # shutil.rmtree
        if isinstance(name, str) and (name.startswith(self.output) or removed_below):
            self.happens(self.phase)

    def add_samples(self, inputs: dict[str, Any]) -> None:
        """Record the content of the samples of a micro-batch."""
        ids, labels = (inputs[name].numpy() for name in ("input_ids", "labels"))
        for row, targets in zip(ids, labels, strict=True):
            used = len(row)
            while used > 1 and targets[used - 1] < 0 and row[used - 1] == row[-1]:  # padding
                used -= 1
            self._samples.write(f"{self.step} {zlib.crc32(np.ascontiguousarray(row[:used], np.int64).tobytes()):08x}\n")

    def write_counts(self, name: str) -> None:
        counts = [[step, phase, count] for (step, phase), count in sorted(self.counts.items())]
        self.records.write(name, counts, self.rank)

    def _kill(self, kill: Kill) -> None:
        self.records.write("killed", asdict(kill))
        if kill.whom == "launcher":
            os.kill(os.getppid(), signal.SIGKILL)
        if kill.whom != "rank":
            for rank in range(self.ranks):
                while (pid := self.records.read("pid", rank)) is None:  # it has not started yet
                    time.sleep(0.01)
                if rank != self.rank:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        os.kill(self._pid, signal.SIGKILL)


def watch_training(moments: Moments) -> None:
    """Count the events of the training of this process. Called after Paddle was imported."""
    import paddle
    from paddlenlp.trainer import TrainerCallback

    from paddle_llm.checkpoint.saving import protocol
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            moments.records.write("started from", state.global_step, moments.rank)
            _watch_network(moments, model)

        def on_step_begin(self, args, state, control, **kwargs):
            if moments.step == 0:
                moments.write_counts("events of the start")
            moments.step, moments.phase = state.global_step + 1, "rows"

        def on_substep_end(self, args, state, control, **kwargs):
            moments.happens("accumulation")

        def on_optimizer_begin(self, args, state, control, **kwargs):
            moments.happens("optimizer")

        def on_optimizer_end(self, args, state, control, **kwargs):
            moments.happens("optimizer")

        def on_train_end(self, args, state, control, **kwargs):
            moments.step, moments.phase = state.global_step + 1, "end"

    def train(original: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(self, *arguments, **options):
            self.add_callback(Watch())
            return original(self, *arguments, **options)

        return replaced

    def training_step(original: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(self, model, inputs, *arguments, **options):
            moments.add_samples(inputs)
            return original(self, model, inputs, *arguments, **options)

        return replaced

    def in_phase(phase: str) -> Callable[..., Any]:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def replaced(*arguments, **options):
                before, moments.phase = moments.phase, phase
                try:
                    return original(*arguments, **options)
                finally:
                    moments.phase = before

            return replaced

        return wrap

    def update(original: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*arguments, **options):
            result = original(*arguments, **options)
            moments.happens("optimizer")
            return result

        return replaced

    for owner, name, wrap in (
        (PretrainTrainer, "train", train),
        (PretrainTrainer, "training_step", training_step),
        (PretrainTrainer, "_save_checkpoint", in_phase("save")),
        (protocol, "rotate", in_phase("rotation")),
        (paddle.optimizer.AdamW, "_append_optimize_op", update),
    ):
        setattr(owner, name, wrap(getattr(owner, name)))


def _watch_network(moments: Moments, model: Any) -> None:
    def before_forward(layer: Any, inputs: Any) -> None:
        moments.happens("forward" if layer.training else "evaluation")

    def after_backward(*_: Any) -> None:
        moments.happens("backward")

    for layer in model.sublayers():
        if not layer.sublayers():
            layer.register_forward_pre_hook(before_forward)
    for parameter in model.parameters():
        if not parameter.stop_gradient:
            parameter._register_backward_hook(after_backward)
