"""Files that version 0.1 wrote (commit 2469cb2) are read, resumed and used for generation as that version did it.

`tests/fixtures/version_0_1` holds a full fine-tuning of a LLaMA with hidden size 16 (its checkpoint of step 2 and its final
model), a LoRA fine-tuning of that model, two exports, and in `expected.json` the texts that version 0.1 generated from each.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers.forked import run_forked
from tests.helpers.pretrain_jobs import rows

ROOT = Path(__file__).parents[2]
WRITTEN = ROOT / "tests/fixtures/version_0_1"
# The command of version 0.1, without the output folder.
FINETUNE = (
    "--dataset_name_or_path data --do_train --do_eval --device cpu --max_length 96 --max_steps 4 "
    "--per_device_train_batch_size 2 --logging_steps 1 --evaluation_strategy steps --eval_steps 2 --save_strategy steps "
    "--save_steps 2 --report_to none --disable_tqdm true --save_total_limit 2 --continue_training 0"
)
JOBS = {
    "full": "--model_name_or_path llama --learning_rate 3e-3",
    "lora": "--model_name_or_path full/model --learning_rate 5e-2 --lora true --lora_rank 2 --lora_alpha 64",
}


@pytest.fixture
def folder(tmp_path):
    """Return a writable copy of the files."""
    return Path(shutil.copytree(WRITTEN, tmp_path / "written"))


def run(folder: Path, *words: str) -> str:
    """Run Python in `folder`, and return its stdout."""
    done = run_forked(*words, cwd=folder, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("source", ["full", "full/checkpoint-2", "exported", "program", "lora"])
def test_an_old_model_generates_the_same_text(source, folder):
    words = ["full/model", "--adapter", "lora/adapter"] if source == "lora" else [source]
    words += ["--static"] if source == "program" else []
    command = ("-m", "paddle_llm.cli", "generate", *words, "--prompt", "Ada has 3 apples", "--max_new_tokens", "12")
    assert run(folder, *command, "--device", "cpu") == json.loads((WRITTEN / "expected.json").read_text())[source]


@pytest.mark.parametrize("job", list(JOBS))
def test_an_old_checkpoint_resumes_to_the_same_end(job, folder):
    """Another processor may round differently, so the rows and weights may differ by rounding only."""
    expected = rows(WRITTEN / job)
    shutil.rmtree(folder / job / ("model" if job == "full" else "adapter"))
    run(folder, str(ROOT / "finetune_generation.py"), *FINETUNE.split(), *JOBS[job].split(), "--output_dir", job)
    found = rows(folder / job)
    assert [row.keys() - {"loss_spikes"} for row in found] == [row.keys() for row in expected]  # a later key
    for row, other in zip(found, expected, strict=True):
        for key in {"loss", "grad_norm", "eval_loss"} & row.keys():
            assert row[key] == pytest.approx(other[key], rel=1e-5)
    name = "model/model.safetensors" if job == "full" else "adapter/adapter_model.safetensors"
    weights, others = load_file(folder / job / name), load_file(WRITTEN / job / name)
    assert weights.keys() == others.keys()
    for key, tensor in weights.items():
        np.testing.assert_allclose(tensor, others[key], rtol=1e-4, atol=1e-6)


def test_an_old_model_is_exported_bit_for_bit(folder):
    run(folder, "-m", "paddle_llm.cli", "export", "full", "--target", "hf", "again", "--no_verify")
    weights, others = (load_file(path / "model.safetensors") for path in (folder / "again", WRITTEN / "exported"))
    assert weights.keys() == others.keys()
    assert all(weights[name].tobytes() == others[name].tobytes() for name in weights)
