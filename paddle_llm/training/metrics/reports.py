"""What a user sees of a run: metrics.jsonl, the curves, a progress bar or one line per row, a table at the end."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from paddlenlp.trainer import TrainerCallback
from paddlenlp.trainer.trainer_utils import IntervalStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from paddle_llm.config.run_config import SCORES
from paddle_llm.core.artifacts import CURVES_FOLDER, METRICS

if TYPE_CHECKING:
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer


class StepFlow(TrainerCallback):
    """Clocks and flags around each step; stands after upstream's DefaultFlowCallback."""

    def __init__(self, trainer: PretrainTrainer):
        self._trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self._trainer.restore_meter()
        self._trainer.meter.start_step()

    def on_load_data_end(self, args, state, control, **kwargs):
        self._trainer.meter.data_arrived()

    def on_substep_end(self, args, state, control, **kwargs):
        self._trainer.meter.start_waiting()

    def on_step_end(self, args, state, control, **kwargs):
        # Whatever the intervals say, a run does not end without its last row, evaluation and checkpoint. The data
        # set holds all epochs, so the ends of epochs are seen here, not by the loop.
        last = state.global_step >= state.max_steps
        epoch_ends = last or self._trainer.ends_epoch(state.global_step)
        control.should_log |= last
        control.should_evaluate |= _due(args.evaluation_strategy, last, epoch_ends)
        control.should_save |= _due(args.save_strategy, last, epoch_ends)

    def on_epoch_end(self, args, state, control, **kwargs):
        # Upstream's one epoch ends with the last step, which has been served.
        control.should_log = control.should_evaluate = control.should_save = False


def _due(strategy: IntervalStrategy, last: bool, epoch_ends: bool) -> bool:
    return epoch_ends if strategy == IntervalStrategy.EPOCH else last and strategy == IntervalStrategy.STEPS


class MetricsFile(TrainerCallback):
    """Appends each row to metrics.jsonl, flushed. Resuming drops the rows after the checkpoint: no step twice."""

    def __init__(self, path: Path):
        self._path = path

    def on_train_begin(self, args, state, control, **kwargs):
        rows = [row for row in read_rows(self._path) if _stays(row, state.global_step)]
        kept = self._path.with_suffix(".jsonl.kept")
        kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(kept, self._path)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "step" in logs:
            with self._path.open("a") as file:
                file.write(json.dumps({key: _finite(value) for key, value in logs.items()}) + "\n")


def _finite(value):
    """JSON has no NaN and no infinity: null stands for them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; none where it does not exist. A row cut off by a crash is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _stays(row: dict, resumed_step: int) -> bool:
    """Rows up to the checkpoint; a prediction on the test part is made again at the end."""
    return 0 < resumed_step >= row["step"] and "test_loss" not in row


class CurveWriter(TrainerCallback):
    """VisualDL's record of the same rows. It is made anew from metrics.jsonl at the start, so resumed curves are one."""

    def __init__(self, output_dir: Path):
        self._folder = output_dir / CURVES_FOLDER
        self._metrics = output_dir / METRICS
        self._writer = None

    def on_train_begin(self, args, state, control, **kwargs):
        from visualdl import LogWriter

        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._writer = LogWriter(logdir=str(self._folder))
        for row in read_rows(self._metrics):
            self._write(row)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self._writer is not None and "step" in logs:
            self._write(logs)
            self._writer._get_file_writer().flush()

    def on_train_end(self, args, state, control, **kwargs):
        self._writer.close()
        self._writer = None

    def _write(self, row: dict) -> None:
        for key, value in row.items():
            if key != "step" and value is not None:
                self._writer.add_scalar(tag=_tag(key), step=row["step"], value=value)


def _tag(key: str) -> str:
    return key.replace("_", "/", 1) if key.startswith(("eval_", "test_")) else f"train/{key}"


class ProgressReport(TrainerCallback):
    """A bar with loss, speed and time left on a terminal; elsewhere one line per row. A table at the end."""

    def __init__(self, bar: bool):
        self._console = Console(stderr=True)
        self._wants_bar = bar and self._console.is_terminal
        self._bar: Progress | None = None
        self._task = None
        self._first: dict | None = None
        self._last: dict = {}
        self._began = time.perf_counter()
        self._first_step = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._began, self._first_step = time.perf_counter(), state.global_step
        if self._wants_bar:
            self._bar = Progress(
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TextColumn("{task.fields[row]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step, row="")
            self._bar.start()

    def on_step_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "step" not in logs:
            return
        self._last.update(logs)
        if "loss" in logs and self._first is None:
            self._first = logs
        if self._bar is not None and "loss" in logs:
            self._bar.update(self._task, row=f"loss {_loss(logs)}  {logs['tokens_per_second']:,.0f} tokens/s")
        elif self._bar is None or "loss" not in logs:
            self._print(self._line(logs, state))

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _line(self, row: dict, state) -> str:
        if "loss" not in row:
            values = (f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "step")
            return "  ".join([f"step {row['step']}", *values])
        done = row["step"] - self._first_step
        left = (time.perf_counter() - self._began) / done * (state.max_steps - row["step"]) if done > 0 else 0.0
        return f"step {row['step']}/{state.max_steps}  {_short(row)}  left {_clock(left)}"

    def on_train_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._first is None:
            return
        table = Table(title="training finished", show_header=False)
        rows = {
            "steps": f"{state.global_step} ({_clock(time.perf_counter() - self._began)})",
            "loss": ", ".join(
                dict.fromkeys(
                    f"{_loss(row)} at step {step}"
                    for row, step in ((self._first, self._first["step"]), (self._last, state.global_step))
                )
            ),
            "evaluation loss": f"{self._last['eval_loss']:.4f} (perplexity {self._last['eval_ppl']:.2f})"
            if "eval_loss" in self._last
            else "",
            "answers": _scores(self._last),
            "best": f"step {_step_of(state.best_model_checkpoint)}" if state.best_model_checkpoint else "",
            "speed": f"{self._last['tokens_per_second']:,.0f} tokens/s",
            "peak memory": f"{self._last['peak_memory_bytes'] / 2**30:.2f} GiB (largest rank)",
            "tokens": f"{self._last['consumed_tokens']:,}",
            "skipped steps": str(self._last["skipped_steps"]) if self._last["skipped_steps"] else "",
            "curves": f"paddle-llm board {args.output_dir}",
        }
        for name, value in rows.items():
            if value:
                table.add_row(name, value)
        self._console.print(table)


def _scores(row: dict) -> str:
    """What the last evaluation's answers were worth."""
    return ", ".join(f"{name} {row[f'eval_{name}']:.2f}" for name in SCORES if f"eval_{name}" in row)


def _step_of(checkpoint: str) -> str:
    return checkpoint.rpartition("-")[2]


def _short(row: dict) -> str:
    mfu = f"  mfu {row['mfu']:.1%}" if row["mfu"] is not None else ""
    norm = f"  grad norm {row['grad_norm']:.3f}" if row["grad_norm"] is not None else ""
    return f"loss {_loss(row)}{norm}  lr {row['learning_rate']:.3g}  {row['tokens_per_second']:,.0f} tokens/s{mfu}"


def _loss(row: dict) -> str:
    return "skipped" if row["loss"] is None else f"{row['loss']:.4f}"


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
