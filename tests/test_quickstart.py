"""The quickstart: its report on a given run, and the whole script (slow), which must learn within its promise."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.forked import run_forked

ROOT = Path(__file__).parents[1]
PROMPT = "The function returns"
SVG = "{http://www.w3.org/2000/svg}"
TOKENS = np.repeat(np.arange(4), [8, 4, 2, 2])  # entropy: 1.75 bits, 1.213 nats
LOSSES = [(1, 3.5), (10, 2.0), (20, 1.0)]


def write_run(folder: Path, eval_loss: float, sample: str) -> Path:
    """Write the files of a run from which the report is made."""
    (folder / "data").mkdir(parents=True)
    (folder / "output").mkdir()
    TOKENS.astype(np.uint16).tofile(folder / "data" / "python.bin")
    texts = ["The method returns a list, or None.", "Raise_it for each item: x1."]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = [{"step": step, "loss": loss} for step, loss in LOSSES]
    rows += [{"step": 10, "eval_loss": 2.5}, {"step": 20, "eval_loss": eval_loss}, {"step": 15, "loss": None}]
    (folder / "output" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sample.txt").write_text(f"{PROMPT} {sample}\n")
    return folder


def report(run: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / "quickstart_report.py"), str(run), PROMPT]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=run)


def test_the_report_shows_losses_sample_and_three_commands(tmp_path):
    done = report(write_run(tmp_path / "run", eval_loss=0.9, sample="a list for none, raise_it  X1 rais list_ unknown"))
    assert done.returncode == 0, done.stderr
    assert "training loss    3.500 -> 1.000" in done.stdout
    assert "evaluation loss  0.900" in done.stdout and "unigram entropy  1.213" in done.stdout
    assert "NOT LEARNED" not in done.stdout
    assert "6 of 9 generated words occur in the corpus" in done.stdout
    commands = done.stdout.split("Next, try:\n")[1].splitlines()
    assert [shlex.split(command)[1] for command in commands] == ["board", "generate", "rehearse"]


@pytest.mark.parametrize(("eval_loss", "code"), [(0.913, 0), (0.914, 1), (1.3, 1)])
def test_a_loss_that_is_not_clearly_lower_is_reported(tmp_path, eval_loss, code):
    done = report(write_run(tmp_path / "run", eval_loss, sample="a list"))
    assert done.returncode == code
    assert ("NOT LEARNED" in done.stdout) == bool(code)


def test_the_picture_shows_every_row_and_the_baseline(tmp_path):
    run = write_run(tmp_path / "run", eval_loss=0.9, sample="a list")
    report(run)
    picture = ElementTree.parse(run / "output" / "loss_curve.svg").getroot()
    (line,) = picture.iter(f"{SVG}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in picture.iter(f"{SVG}circle")]
    (baseline,) = (float(e.attrib["y1"]) for e in picture.iter(f"{SVG}line") if "stroke-dasharray" in e.attrib)
    # One linear scale for each axis: step -> x, loss -> y.
    expected = [(step, loss) for step, loss in LOSSES] + [(10, 2.5), (20, 0.9)]
    steps, losses = np.array(expected).T
    x, y = np.array(points + circles).T
    for values, places in ((steps, x), (losses, y)):
        slope, start = np.polyfit(values, places, 1)
        np.testing.assert_allclose(start + slope * values, places, atol=0.11)
    assert x[2] > x[1] > x[0] and y[2] > y[1] > y[0]  # later is to the right, a lower loss is further down
    assert np.interp(1.213, [0.9, 3.5], [y[4], y[0]]) == pytest.approx(baseline, abs=0.2)
    names = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"training", "evaluation", "unigram entropy", "step", "20"} <= set(names)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # five minutes on two idle cores, for eight ranks
def test_the_quickstart_learns_and_its_commands_run():
    """`make quickstart` without the installation. The script exits 1 if the loss is not 0.3 below the unigram entropy."""
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        ["launch/quickstart.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The terminal shows our lines; those of the launcher are in its log.
    assert "LAUNCH INFO" not in done.stdout + done.stderr
    assert "LAUNCH INFO" in (ROOT / "quickstart_run" / "log" / "launcher.log").read_text()
    for line in ("step 1/", "training finished", "evaluation loss", "picture"):
        assert line in done.stdout + done.stderr, line
    known, words = map(int, re.search(r"(\d+) of (\d+) generated words", done.stdout).groups())
    assert words >= 10 and known >= 0.8 * words, done.stdout
    board, *others = done.stdout.split("Next, try:\n")[1].splitlines()
    # `board` runs until Ctrl-C; tests/training/test_board.py starts it.
    assert shlex.split(board)[1:] == ["board", "quickstart_run/output"]
    for command in others:
        ended = run_forked("-m", "paddle_llm.cli", *shlex.split(command)[1:], cwd=ROOT, timeout=600)
        assert ended.returncode == 0, ended.stdout + ended.stderr
