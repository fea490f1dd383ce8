"""`paddle-llm board`: its messages, its address, and the loss curve as a browser draws it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paddle_llm.cli.board import find_logs
from paddle_llm.core.errors import UserError
from tests.helpers.chromium import find_chromium, open_page
from tests.helpers.skips import needs

LOSSES = [7.0 - 0.25 * step for step in range(20)]
BOARD = [sys.executable, "-c", "from paddle_llm.cli.board import board; board()"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of a run with one curve."""
    from visualdl import LogWriter

    folder = tmp_path_factory.mktemp("output")
    with LogWriter(str(folder / "visualdl")) as writer:
        for step, loss in enumerate(LOSSES):
            writer.add_scalar("train/loss", loss, step)
    return folder


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Yield the address that the command prints, and end the command with Ctrl-C."""
    with (folder / "board.err").open("w") as errors:
        process = subprocess.Popen(
            [*BOARD, str(folder), "--port", "0"], stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=100)


@pytest.fixture(scope="module")
def address(run_folder: Path) -> Iterator[str]:
    with served(run_folder) as url:
        yield url


def test_logs_are_found_in_the_output_folder_and_in_the_folder_itself(run_folder: Path) -> None:
    assert find_logs(run_folder) == run_folder / "visualdl"
    assert find_logs(run_folder / "visualdl") == run_folder / "visualdl"
    assert find_logs(run_folder.parent) == run_folder.parent  # several runs


def test_a_folder_without_curves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no curves: .*--report_to"):
        find_logs(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        find_logs(tmp_path / "nothing")


def test_mistakes_end_with_2_and_one_message(run_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        busy = subprocess.run(
            [*BOARD, str(run_folder), "--port", str(taken.getsockname()[1])], capture_output=True, text=True, timeout=60
        )
    empty = subprocess.run([*BOARD, str(tmp_path)], capture_output=True, text=True, timeout=60)
    for ended, words in ((busy, "--port"), (empty, "no curves")):
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert words in ended.stderr and "Traceback" not in ended.stderr


def test_address_answers_a_client_without_a_language_and_holds_the_numbers(address: str, run_folder: Path) -> None:
    with urllib.request.urlopen(address, timeout=100) as page:  # urllib sends no Accept-Language
        assert page.status == 200
    query = f"run={run_folder / 'visualdl'}&tag=train/loss"
    with urllib.request.urlopen(address.replace("scalar", f"api/scalar/list?{query}"), timeout=100) as answer:
        rows = json.load(answer)["data"]
    assert [row[2] for row in rows] == pytest.approx(LOSSES, abs=1e-5)
    (line,) = (run_folder / "board.err").read_text().splitlines()  # VisualDL warns of every update of its cache
    assert line.startswith("serving the curves in ")


# Remembers what the page draws: texts, and the points of every stroked path.
RECORD_CANVAS = """
window.drawnTexts = []; window.drawnPaths = [];
const context = CanvasRenderingContext2D.prototype;
for (const name of ['fillText', 'beginPath', 'moveTo', 'lineTo', 'bezierCurveTo', 'stroke']) {
    const original = context[name];
    context[name] = function (...args) {
        if (name === 'fillText') window.drawnTexts.push(args[0]);
        if (name === 'beginPath') this.points = [];
        if (['moveTo', 'lineTo', 'bezierCurveTo'].includes(name)) (this.points ||= []).push(args.slice(-2));
        if (name === 'stroke' && this.points?.length > 10) window.drawnPaths.push(this.points);
        return original.apply(this, args);
    };
}
"""


@pytest.mark.browser
def test_the_loss_curve_is_drawn(address: str, tmp_path: Path) -> None:
    chromium = find_chromium()
    needs("chromium", chromium is not None, "Debian: apt-get install chromium")
    with open_page(chromium, tmp_path / "profile") as page:
        page.before_load(RECORD_CANVAS)
        page.go(address)
        page.wait_for("window.drawnTexts && window.drawnTexts.includes('train/loss')")
        paths = page.wait_for("window.drawnPaths.length && window.drawnPaths")
        heading = page.evaluate("document.querySelector('h3').innerText")
    assert heading == "train"
    # y grows downwards on a canvas: a falling loss is a path that runs right and down.
    falling = [path for path in paths if all(a[0] < b[0] and a[1] < b[1] for a, b in zip(path, path[1:], strict=False))]
    assert falling, paths[:2]
    assert max(len(path) for path in falling) >= len(LOSSES)
