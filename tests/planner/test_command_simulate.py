"""`paddle-llm simulate`: output, files and messages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from paddle_llm.cli.main import paddle_llm
from paddle_llm.core.errors import UserError

JOB = [
    "simulate",
    "--pipeline_parallel_degree",
    "4",
    "--micro_batches",
    "8",
    "--forward_ms",
    "10",
    "--backward_ms",
    "20",
]


def run(*words: str) -> str:
    result = CliRunner().invoke(paddle_llm, [*JOB, *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_result_as_text_and_as_json():
    text = run("--replicas", "16", "--jitter", "0.05", "--mtbf_hours", "10000", "--max_steps", "1000")
    assert "64 ranks, 1,000 simulated steps" in text
    assert "step without disturbances  330.0 ms, a rank waits 27.3% of the pipeline's time" in text
    assert "best checkpoint interval" in text
    assert "mean step                  330.0 ms (+0.0%)" in run("--replicas", "16")
    result = json.loads(run("--mtbf_hours", "10000", "--max_steps", "1000", "--json"))
    assert result["step"]["ideal_ms"] == pytest.approx(330)
    assert result["failures"]["mean_hours_between_failures"] == 2500
    shares = {one["steps"]: one["share"] for one in result["failures"]["intervals"]}
    assert result["failures"]["best"]["goodput"] == max(shares.values())
    assert result["failures"]["job"]["hours_without_disturbances"] == pytest.approx(330 / 3600)


def test_the_same_seed_prints_the_same_result():
    words = ("--jitter", "0.1", "--stragglers", "0.01", "--mtbf_hours", "500", "--json")
    assert run(*words) == run(*words) != run(*words, "--seed", "1")


def test_picture_and_trace_are_written(tmp_path):
    picture, trace = tmp_path / "step.svg", tmp_path / "step.json"
    run("--svg", str(picture), "--trace", str(trace))
    assert picture.read_text().startswith("<svg")
    assert len([event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]) == 64


def test_zero_bubble_takes_half_of_the_backward_pass_for_weights():
    result = CliRunner().invoke(paddle_llm, [*JOB, "--schedule", "zero-bubble", "--json"])
    assert "half of --backward_ms" in result.stderr
    assert json.loads(result.stdout)["step"]["ideal_ms"] == pytest.approx(8 * 30 + 3 * 10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--forward_ms", "1,2"), "--forward_ms has 2 numbers for 4 pipeline ranks"),
        (("--virtual_pp_degree", "2"), "Use --schedule interleaved"),
        (("--schedule", "interleaved", "--micro_batches", "3"), "less than the 4 pipeline ranks"),
        (("--weight_ms", "3"), "--weight_ms has no effect on the schedule 1f1b"),
        (("--schedule", "zero-bubble", "--weight_ms", "30"), "--weight_ms is more than --backward_ms"),
        (("--slow_rank", "4:2"), "--slow_rank 4 is not one of the 4 ranks"),
        (("--forward_ms", "0", "--backward_ms", "0"), "are 0"),
        (("--svg", "missing/step.svg"), "the folder missing does not exist"),
    ],
)
def test_mistakes_are_reported(words, message):
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(paddle_llm, [*JOB, *words], catch_exceptions=False)


@pytest.mark.parametrize("words", [("--forward_ms", "1,x"), ("--slow_rank", "3"), ("--jitter", "nan")])
def test_values_that_are_not_numbers_are_refused(words):
    result = CliRunner().invoke(paddle_llm, [*JOB, *words])
    assert result.exit_code == 2
    assert "Invalid value" in result.stderr


def test_the_command_does_not_import_paddle():
    code = (
        "import sys; from paddle_llm.cli.main import paddle_llm; "
        f"paddle_llm({JOB!r}, standalone_mode=False); sys.exit('paddle' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
