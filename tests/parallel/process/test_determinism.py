"""`--deterministic 1`: the variables that it sets, before Paddle is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.parallel.process.determinism import DETERMINISTIC
from paddle_llm.training import api as notebook
from tests.helpers.models.tiny import write_llama

# The entry script on a machine that seems to have a GPU, up to the import of paddle.
_START = """
import json, os, sys
from paddle_llm.config import reader
from paddle_llm.parallel.process import start
from paddle_llm.training import run
def stop():
    print(json.dumps(["paddle" in sys.modules, dict(os.environ)]))
    sys.exit(0)
reader.has_gpu = reader.paddle_has_gpu = lambda: True
reader.find_device = lambda: "gpu"
start.import_paddle = stop
run.main(sys.argv[1:])
"""


def _environment_of_job(tmp_path, *flags: str, **environment: str) -> tuple[bool, dict[str, str], str]:
    model = write_llama(tmp_path / "model")
    (model / "tokenizer_config.json").write_text("{}")
    required = [
        "--model_name_or_path",
        str(model),
        "--do_train",
        "--input_dir",
        str(tmp_path / "data"),
        *("--max_seq_length", "16", "--max_steps"),
        "1",
    ]
    command = [sys.executable, "-c", _START, *required, "--output_dir", str(tmp_path / "output"), *flags]
    clean = {name: value for name, value in os.environ.items() if name not in DETERMINISTIC}
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return *json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "data").mkdir()
    for suffix in ("bin", "idx"):
        (tmp_path / f"data/c.{suffix}").touch()


def test_the_environment_is_set_before_paddle_is_imported(tmp_path, corpus):
    imported, environment, report = _environment_of_job(tmp_path, "--deterministic", "1")
    assert not imported and environment.items() >= DETERMINISTIC.items()
    assert all(f"{name}={value}" in report for name, value in DETERMINISTIC.items())


def test_without_the_flag_nothing_is_set(tmp_path, corpus):
    _, environment, _ = _environment_of_job(tmp_path)
    assert not DETERMINISTIC.keys() & environment.keys()


def test_a_value_of_the_user_is_kept_and_reported(tmp_path, corpus):
    _, environment, report = _environment_of_job(tmp_path, "--deterministic", "1", NCCL_ALGO="Tree")
    assert environment["NCCL_ALGO"] == "Tree" and "keeping NCCL_ALGO=Tree of the environment" in report


def test_it_is_rejected_after_paddle_is_imported(tmp_path, corpus, monkeypatch):
    import paddle  # noqa: F401

    from paddle_llm.config import reader

    for name, value in {"has_gpu": True, "paddle_has_gpu": True, "find_device": "gpu"}.items():
        monkeypatch.setattr(reader, name, lambda value=value: value)
    settings = {"input_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "output"), "do_train": True}
    with pytest.raises(UserError, match="after Paddle is imported"):
        notebook.pretrain(
            model_name_or_path=str(write_llama(tmp_path / "model")),
            max_steps=1,
            max_seq_length=16,
            deterministic=True,
            **settings,
        )
