"""Reports: the progress bar of a terminal, the lines of a job, the files of a folder; no row twice after a resume."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from visualdl import LogReader

from tests.helpers.pretrain_jobs import config, make_trainer, rows

ROOT = Path(__file__).parents[2]
RUN = """
from pathlib import Path
import sys
from tests.helpers.pretrain_jobs import config, make_trainer
run = config(Path(sys.argv[1]), disable_tqdm=False, logging_steps=2)
make_trainer(run).train()
"""


def _in_a_terminal(folder: Path) -> str:
    """Run a short training whose stderr is a terminal of 80 columns, and return its output."""
    master, slave = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", RUN, str(folder)], stderr=slave, stdout=slave, env=environment
    )
    os.close(slave)
    drawn = b""
    while True:
        try:
            chunk = os.read(master, 1 << 16)
        except OSError:
            break
        if not chunk:
            break
        drawn += chunk
    assert process.wait() == 0, drawn.decode()
    return drawn.decode()


def test_a_terminal_shows_a_bar_with_loss_speed_and_time_left(tmp_path):
    drawn = _in_a_terminal(tmp_path)
    assert "12/12" in drawn and "tokens/s" in drawn and "loss 4." in drawn and "0:00:0" in drawn
    assert "eval_loss" in drawn and "training finished" in drawn


def test_a_job_without_a_terminal_gets_one_line_per_row(tmp_path, capsys):
    make_trainer(config(tmp_path)).train()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ") and "loss" in line]
    assert [line.split()[1] for line in lines] == ["1/12", "3/12", "6/12", "6", "9/12", "12/12", "12"]
    assert all("left" in line and "tokens/s" in line for line in lines[1:] if "/12" in line)


def test_the_loss_of_step_1_is_printed_once_and_starts_the_closing_table(tmp_path, capsys):
    make_trainer(config(tmp_path / "rows", logging_steps=1)).train()
    first = f"{rows(tmp_path / 'rows' / 'output')[0]['loss']:.4f}"
    printed = capsys.readouterr().err
    assert printed.count("step 1/12 ") == 1 and f"{first} at step 1," in printed
    make_trainer(config(tmp_path / "no_row")).train()
    printed = capsys.readouterr().err
    assert f"\nstep 1/12  loss {first}\n" in f"\n{printed}" and printed.count("step 1/12 ") == 1
    assert f"{first} at step 1," in printed
    assert rows(tmp_path / "no_row" / "output")[0]["step"] == 3
    make_trainer(config(tmp_path / "no_row", max_steps=13)).train(str(tmp_path / "no_row" / "output" / "checkpoint-10"))
    assert "at step 1," not in capsys.readouterr().err


def test_scores_have_their_digits(capsys):
    from paddle_llm.training.metrics.reports import ProgressReport

    row = {"step": 5, "eval_loss": 2.0, "eval_bleu": 0.0008, "eval_rouge1": 0.5, "eval_generated": 3}
    ProgressReport(bar=False).on_log(None, None, None, row)
    shown = "step 5  eval_loss 2.0000  eval_bleu 0.00  eval_rouge1 0.5000  eval_generated 3\n"
    assert capsys.readouterr().err == shown


def _curve(folder: Path, group: str, tag: str) -> list[tuple[int, float]]:
    (record,) = (folder / "visualdl").glob("vdlrecords.*")
    return [(point.id, point.value) for point in LogReader(file_path=str(record)).get_data("scalar", f"{group}/{tag}")]


def test_curves_are_the_rows_and_one_curve_after_a_resume(tmp_path):
    run = config(tmp_path, report_to=["visualdl"])
    make_trainer(run, curves=True).train()
    make_trainer(run, curves=True).train(str(tmp_path / "output" / "checkpoint-5"))
    found = rows(tmp_path / "output")
    assert [row["step"] for row in found if "loss" in row] == [3, 6, 9, 12]
    expected = [(row["step"], row["loss"]) for row in found if "loss" in row]
    points = _curve(tmp_path / "output", "train", "loss")
    assert [step for step, _ in points] == [3, 6, 9, 12]
    assert [value for _, value in points] == pytest.approx([loss for _, loss in expected], rel=1e-6)
    assert len(_curve(tmp_path / "output", "eval", "loss")) == 2


def test_a_row_cut_off_by_a_crash_is_dropped(tmp_path):
    run = config(tmp_path)
    make_trainer(run).train()
    metrics = tmp_path / "output" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole[: whole.rindex("eval_loss")])
    make_trainer(run).train(str(tmp_path / "output" / "checkpoint-10"))
    assert [row["step"] for row in rows(tmp_path / "output")] == [3, 6, 6, 9, 12, 12]
