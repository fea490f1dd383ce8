"""`paddle-llm check`: mistakes, and the description of a job, without Paddle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from paddle_llm.cli.main import paddle_llm
from paddle_llm.config.reader import resolve
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.dataset import samples_per_epoch
from tests.helpers.corpus import numbered_documents, write_corpus
from tests.helpers.models.tiny import write_llama

ROOT = Path(__file__).parents[2]
LARGE = "configs/pretrain/llama_2_70b_tp8_pp4_sharding2_stage1.json"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def check(*words: str) -> Result:
    return CliRunner().invoke(paddle_llm, ["check", *words])


def as_json(*words: str) -> dict[str, Any]:
    done = check(*words, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_job_is_described_without_paddle() -> None:
    words = ["paddle-llm", "check", LARGE, "--world_size", "64", "--json"]
    code = f"import sys; sys.argv = {words}\nfrom paddle_llm.cli.main import main\n"
    code += "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    code += "assert not {'paddle', 'paddlenlp', 'torch', 'transformers'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["valid"], found["problems"], found["entry"]) == (True, [], "pretrain")
    assert (found["nodes"], found["ranks_per_machine"]) == (8, 8)
    mesh = {groups["axis"]: groups for groups in found["mesh"]}
    assert mesh["tensor"]["groups"][0] == list(range(8)) and mesh["tensor"]["crossing"] == 0
    assert mesh["sharding"]["groups"][0] == [0, 8]
    assert mesh["pipeline"]["groups"][0] == [0, 16, 32, 48] and mesh["pipeline"]["crossing"] == 16
    raw = json.loads((ROOT / LARGE).read_text())
    batch = raw["per_device_train_batch_size"] * raw["gradient_accumulation_steps"] * 2
    assert found["global_batch"] == batch and found["tokens_per_step"] == batch * 4096
    assert found["parameters"]["total"] == found["parameters"]["trainable"] == 68_976_648_192
    # The first stage: 20 layers and the embedding, an eighth of each matrix and whole norms.
    matrices = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672
    first = 20 * (matrices // 8 + 2 * 8192) + 32000 * 8192 // 8
    assert found["parameters"]["per_rank"][0] == {"stage": 0, "total": first, "trainable": first}


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "wrong.json"
    raw = {
        "model_name_or_path": str(write_llama(tmp_path / "llama")),
        "output_dir": "o",
        "do_train": True,
        "input_dir": "d",
    }
    file.write_text(json.dumps({**raw, "tensor_parallel_degree": 3, "max_steps": "many", "learning_rat": 1}))
    words = (str(file), "--world_size", "6", "--nodes", "4")
    done = check(*words, "--json")
    assert done.exit_code == 2
    found = json.loads(done.stdout)
    assert found["valid"] is False
    for part in (
        "attention heads",
        "expected a whole number",
        "Did you mean learning_rate?",
        "--nodes 4 does not divide",
    ):
        assert any(part in problem for problem in found["problems"]), part
    printed = check(*words)
    assert isinstance(printed.exception, UserError) and "--nodes 4 does not divide" in str(printed.exception)


def test_steps_are_those_of_the_data(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", numbered_documents(200))
    words = ("--model_name_or_path", str(write_llama(tmp_path / "llama")), "--input_dir", str(tmp_path / "corpus"))
    words += (
        "--output_dir",
        "o",
        "--do_train",
        "--max_seq_length",
        "16",
        "--num_train_epochs",
        "3",
        "--split",
        "9,1,0",
    )
    found = as_json(*words, "--world_size", "2")
    config = resolve(list(words), world_size=2, device="gpu").config
    rows = samples_per_epoch(config, 16)
    assert rows > 50
    assert found["steps"]["samples_per_epoch"] == rows
    assert (found["steps"]["per_epoch"], found["steps"]["total"]) == (rows / 2, 3 * rows // 2)
    absent = as_json(*words, "--world_size", "2", "--input_dir", str(tmp_path / "nothing"))
    assert absent["steps"]["total"] is None and "cannot be read here" in absent["steps"]["note"]


def test_fine_tuning_is_recognised_and_its_rows_are_counted(tmp_path: Path) -> None:
    data = tmp_path / "train.json"
    data.write_text("".join(json.dumps({"src": f"{i}?", "tgt": f"{i}."}) + "\n" for i in range(10)))
    words = ("--model_name_or_path", str(write_llama(tmp_path / "llama")), "--dataset_name_or_path", str(data))
    words += ("--output_dir", "o", "--do_train", "--lora", "--world_size", "4", "--num_train_epochs", "1")
    found = as_json(*words)
    assert found["entry"] == "finetune" and "--entry" in found["entry_note"]
    assert found["steps"]["samples_per_epoch"] == 10 and found["steps"]["total"] == 3
    assert 0 < found["parameters"]["trainable"] < found["parameters"]["total"] / 5
    assert found["arguments"]["lora_alpha"] == {"value": 16.0, "origin": "derived: twice lora_rank"}
    packed = as_json(*words, "--zero_padding")
    assert packed["steps"]["per_epoch"] is None and "packed" in packed["steps"]["note"]
    refused = check(*words, "--entry", "pretrain", "--json")
    assert refused.exit_code == 2 and any("lora" in line for line in json.loads(refused.stdout)["problems"])


def test_the_text_shows_origins_and_translated_names() -> None:
    words = (
        LARGE,
        "--world_size",
        "64",
        "--nodes",
        "16",
        "--tensor_parallel_degree",
        "4",
        "--sharding_parallel_degree",
        "4",
    )
    done = check(*words, "--sharding_degree", "4")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[-1] == "no mistake found"
    (sharding,) = [line for line in lines if line.startswith("  sharding_parallel_degree ")]
    assert "translated from --sharding_degree" in sharding
    (tensor,) = [line for line in lines if line.startswith("  tensor ")]
    assert "16 groups of 4 ranks, each inside one machine: [0-3] [4-7] [8-11] [12-15] and 12 more" in tensor
    (pipeline,) = [line for line in lines if line.startswith("  pipeline ")]
    assert "all across machines: [0-48/16]" in pipeline
    assert not any(line.startswith("  power ") for line in lines)
    listed = check(*words, "--sharding_degree", "4", "--all").stdout
    assert "  power " in listed
    assert "--sharding_degree 4 is read as --sharding_parallel_degree 4" in done.stderr
