"""Reports of a run: metrics.jsonl, VisualDL curves, a progress bar or one line per row, and a final table."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from paddlenlp.trainer import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from paddle_llm.config.run_config import SCORES
from paddle_llm.core.artifacts import CURVES_FOLDER, METRICS
from paddle_llm.training.callbacks import REPORT_PRIORITY

Row = dict[str, Any]


class MetricsFile(TrainerCallback):
    """Appends each row to metrics.jsonl. Resuming removes the rows after the checkpoint, so that no step occurs twice.

    Args:
        path: Path of metrics.jsonl.
        repeats_evaluation: Function that returns whether the training, when it begins, repeats the evaluation of the
            checkpoint's step, which a stop has interrupted.
    """

    priority = REPORT_PRIORITY

    def __init__(self, path: Path, repeats_evaluation: Callable[[], bool] = lambda: False):
        self._path, self._repeats_evaluation = path, repeats_evaluation

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the rows that the run will write again."""
        rows = [row for row in read_rows(self._path) if _is_kept(row, state.global_step)]
        if self._repeats_evaluation():
            rows = [row for row in rows if not ("eval_loss" in row and row["step"] == state.global_step)]
        kept = self._path.with_suffix(".jsonl.kept")
        kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(kept, self._path)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Row, **kwargs: Any
    ) -> None:
        """Append one row."""
        if "step" in logs:
            with self._path.open("a") as file:
                file.write(json.dumps({key: _finite(value) for key, value in logs.items()}) + "\n")


def _finite(value: Any) -> Any:
    """Return None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a metrics.jsonl, without a row that a crash cut off; [] if the file does not exist."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def is_about_checkpoint(row: Row) -> bool:
    """Return whether a row is about saving or loading a checkpoint: it has times only, and depends on interruptions."""
    return "save_seconds" in row or "load_seconds" in row


def _is_kept(row: Row, resumed_step: int) -> bool:
    """Return whether a row is kept when a run resumes; the final evaluation of the test split is repeated."""
    if "rollback_to_step" in row:  # its step is after the checkpoint and is not repeated
        return True
    return 0 < resumed_step >= row["step"] and "test_loss" not in row


class CurveWriter(TrainerCallback):
    """Writes the rows as VisualDL curves.

    All curves are written again from metrics.jsonl when a training starts, so that a resumed run has no gap.

    Args:
        output_dir: Output folder of the run.
    """

    priority = REPORT_PRIORITY

    def __init__(self, output_dir: Path):
        self._folder = output_dir / CURVES_FOLDER
        self._metrics = output_dir / METRICS
        self._writer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the curves of a resumed run again and keep the writer open."""
        from visualdl import LogWriter

        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._writer = LogWriter(logdir=str(self._folder))
        for row in read_rows(self._metrics):
            self._write(row)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Row, **kwargs: Any
    ) -> None:
        """Write one row."""
        if self._writer is not None and "step" in logs:
            self._write(logs)
            self._writer._get_file_writer().flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the writer."""
        self.close()

    def close(self) -> None:
        """Close the writer, also after a training that has not ended normally."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, row: Row) -> None:
        for key, value in row.items():
            if key != "step" and value is not None:
                self._writer.add_scalar(tag=_tag(key), step=row["step"], value=value)


def _tag(key: str) -> str:
    return key.replace("_", "/", 1) if key.startswith(("eval_", "test_")) else f"train/{key}"


class ProgressReport(TrainerCallback):
    """Shows a bar with loss, speed and remaining time on a terminal, or else one line per row; prints a final table.

    Args:
        bar: Whether a terminal shows a bar.
    """

    priority = REPORT_PRIORITY

    def __init__(self, bar: bool):
        self._console = Console(stderr=True)
        self._wants_bar = bar and self._console.is_terminal
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._first: Row | None = None
        self._first_loss: str | None = None
        self._last: Row = {}
        self._began = time.perf_counter()
        self._first_step = 0
        self._tokens, self._seconds = 0.0, 0.0  # of the steps after the first row

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, and the bar on a terminal."""
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

    def on_first_step(self, steps: int, loss: float | None) -> None:
        """Print the loss of step 1; see `report_first_step`."""
        row = {"step": 1, "loss": loss}
        self._first_loss = f"{_loss(row)} at step 1"
        self._print(f"step 1/{steps}  loss {_loss(row)}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Row, **kwargs: Any
    ) -> None:
        """Show one row beside the bar or as a line."""
        if "step" not in logs or is_about_checkpoint(logs):
            return
        if "loss" in logs:
            self._add_to_average(logs)
        self._last.update(logs)
        if self._bar is not None and "loss" in logs:
            self._bar.update(self._task, row=f"loss {_loss(logs)}  {logs['tokens_per_second']:,.0f} tokens/s")
        elif self._bar is None or "loss" not in logs:
            self._print(self._line(logs, state))

    def _add_to_average(self, row: Row) -> None:
        """Add the steps of a row to the average speed; the first row contains the start of the training."""
        if self._first is None:
            self._first = row
            return
        tokens = row["consumed_tokens"] - self._last["consumed_tokens"]
        if tokens:
            self._tokens += tokens
            self._seconds += tokens / row["tokens_per_second"]

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _line(self, row: Row, state: TrainerState) -> str:
        if "loss" not in row:
            values = (f"{name} {_value(name, value)}" for name, value in row.items() if name != "step")
            return "  ".join([f"step {row['step']}", *values])
        done = row["step"] - self._first_step
        left = (time.perf_counter() - self._began) / done * (state.max_steps - row["step"]) if done > 0 else 0.0
        return f"step {row['step']}/{state.max_steps}  {_summary(row)}  left {_clock(left)}"

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the bar and print the table."""
        self.close()
        if self._first is None:
            return
        table = Table(title="training finished", show_header=False)
        for name, value in self._final_rows(args, state, self._first).items():
            if value:
                table.add_row(name, value)
        self._console.print(table)

    def close(self) -> None:
        """Stop the bar, also after a training that has not ended normally: it has hidden the cursor."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _final_rows(self, args: TrainingArguments, state: TrainerState, first: Row) -> dict[str, str]:
        last = self._last
        first_loss = self._first_loss or f"{_loss(first)} at step {first['step']}"
        losses = [first_loss, f"{_loss(last)} at step {state.global_step}"]
        evaluated = "eval_loss" in last
        return {
            "steps": f"{state.global_step} ({_clock(time.perf_counter() - self._began)})",
            "loss": ", ".join(dict.fromkeys(losses)),
            "evaluation loss": f"{last['eval_loss']:.4f} (perplexity {last['eval_ppl']:.2f})" if evaluated else "",
            "answers": _scores(last),
            "best": f"step {_step_of(state.best_model_checkpoint)}" if state.best_model_checkpoint else "",
            "mean speed": f"{self._tokens / self._seconds if self._tokens else last['tokens_per_second']:,.0f} tokens/s",
            "peak memory": f"{last['peak_memory_bytes'] / 2**30:.2f} GiB (largest rank)",
            "tokens": f"{last['consumed_tokens']:,}",
            "skipped steps": str(last["skipped_steps"]) if last["skipped_steps"] else "",
            "curves": f"paddle-llm board {args.output_dir}",
        }


def report_first_step(callbacks: Iterable[TrainerCallback], steps: int, loss: float | None) -> None:
    """Report the loss of step 1, which shows a wrong start, if the step has no row.

    Args:
        callbacks: Callbacks of the trainer.
        steps: Steps of the whole run.
        loss: Mean loss over all ranks; None if the step was skipped.
    """
    for callback in callbacks:
        if isinstance(callback, ProgressReport):
            callback.on_first_step(steps, loss)


def close_reports(callbacks: Iterable[TrainerCallback]) -> None:
    """Close the reports among the callbacks of a trainer."""
    for callback in callbacks:
        if isinstance(callback, (CurveWriter, ProgressReport)):
            callback.close()


def _scores(row: Row) -> str:
    """Return the scores of the last evaluation's answers."""
    return ", ".join(f"{name} {_value(name, row[f'eval_{name}'])}" for name in SCORES if f"eval_{name}" in row)


def _value(name: str, value: Any) -> str:
    """Return a metric as it is printed: BLEU is a number of 0 to 100, the other scores are shares."""
    return f"{value:.{2 if name.endswith('bleu') else 4}f}" if isinstance(value, float) else str(value)


def _step_of(checkpoint: str) -> str:
    return checkpoint.rpartition("-")[2]


def _summary(row: Row) -> str:
    mfu = f"  mfu {row['mfu']:.1%}" if row["mfu"] is not None else ""
    norm = f"  grad norm {row['grad_norm']:.3f}" if row["grad_norm"] is not None else ""
    return f"loss {_loss(row)}{norm}  lr {row['learning_rate']:.3g}  {row['tokens_per_second']:,.0f} tokens/s{mfu}"


def _loss(row: Row) -> str:
    return "skipped" if row["loss"] is None else f"{row['loss']:.4f}"


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
