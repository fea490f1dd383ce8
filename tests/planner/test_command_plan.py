"""`paddle-llm plan`: output and messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from paddle_llm.cli.main import paddle_llm
from paddle_llm.core.errors import UserError

ROOT = Path(__file__).parents[2]
JOB = ["plan", "configs/pretrain/llama_2_70b_tp8_pp4.json", "--world_size", "32", "--gpu", "a100-80g"]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(*words: str) -> str:
    result = CliRunner().invoke(paddle_llm, [*JOB, *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "calibrated" in result.stderr
    return result.stdout


def test_the_estimate_as_text_and_as_json():
    text = run("--tokens", "1e9")
    assert "tp8+sp x pp4 on 32 x a100-80g" in text
    result = json.loads(run("--tokens", "1e9", "--json"))
    assert result["step_seconds"] == pytest.approx(sum(result["parts"].values()))
    assert 0.3 < result["mfu"] < 0.6
    training = result["training"]
    assert training["steps"] == pytest.approx(1e9 / result["tokens_per_step"])
    assert training["gpu_hours"] == pytest.approx(32 * training["steps"] * result["step_seconds"] / 3600)
    for name, seconds in result["parts"].items():
        assert (name in text) == (seconds > 0)


def test_without_tokens_the_steps_of_the_config_count():
    steps = json.loads((ROOT / JOB[1]).read_text())["max_steps"]
    assert json.loads(run("--json"))["training"]["steps"] == steps
    assert json.loads(run("--json", "--max_steps", "5000"))["training"]["steps"] == 5000


def test_a_faster_gpu_and_more_micro_batches_change_the_estimate():
    base, h100 = json.loads(run("--json")), json.loads(run("--json", "--gpu", "h100"))
    assert h100["step_seconds"] < base["step_seconds"]
    more = json.loads(run("--json", "--gradient_accumulation_steps", "64"))
    assert more["mfu"] > json.loads(run("--json", "--gradient_accumulation_steps", "8"))["mfu"]


def test_rows_of_fine_tuning_are_taken_at_their_longest():
    words = ["plan", "configs/finetune/llama_2_7b_lora.json", "--world_size", "1", "--gpu", "a100-80g", "--json"]
    result = CliRunner().invoke(paddle_llm, words, catch_exceptions=False)
    packed = CliRunner().invoke(paddle_llm, [*words, "--zero_padding", "1"], catch_exceptions=False)
    assert "Every row is taken to have" in result.stderr and "Every row" not in packed.stderr
    assert json.loads(result.stdout)["step_seconds"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpu", "a100-80"), "Did you mean a100-80g"),
        (("--gpu", "cpu"), "step times on a CPU are not estimated"),
        (("--gpu", "t4"), "has no matrix products in bfloat16"),
        (("--device", "cpu"), "device = cpu"),
        (("--world_size", "30"), "does not divide|is more than"),
        (("--model_name_or_path", "someone/unknown"), "is not on this machine"),
    ],
)
def test_mistakes_are_reported(words, message):
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(paddle_llm, [*JOB, *words], catch_exceptions=False)


def test_the_command_does_not_import_paddle():
    code = (
        "import sys; from paddle_llm.cli.main import paddle_llm; "
        f"paddle_llm({JOB!r}, standalone_mode=False); sys.exit('paddle' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_memory_of_the_fullest_rank_is_compared_with_the_card():
    memory = json.loads(run("--json"))["memory"]
    assert memory["total_bytes"] == sum(memory["components"].values())
    assert memory["fits"] and memory["device_bytes"] == 80 * 2**30
    small = json.loads(run("--json", "--gpu", "4090"))["memory"]
    assert not small["fits"] and small["components"] == memory["components"]
    over = (small["total_bytes"] - small["device_bytes"]) / 2**30
    assert f"does not fit: {over:.1f} GiB too much" in run("--gpu", "4090")


@pytest.mark.parametrize(("recipe", "noted"), [("llama_2_7b_prefix", True), ("llama_2_7b_lora", False)])
def test_activations_that_are_not_counted_are_reported(recipe, noted):
    words = ["plan", f"configs/finetune/{recipe}.json", "--world_size", "1", "--gpu", "a100-80g"]
    result = CliRunner().invoke(paddle_llm, words, catch_exceptions=False)
    assert ("activations that prefix adds are not counted" in result.stderr) == noted
