"""A job is not resumed with other samples, whatever has changed them: exit code 2, the change is named, nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.data.tokenizer import train_tokenizer
from tests.helpers.corpus import make_corpus
from tests.helpers.finetune_jobs import VOCABULARY, flags_of, instructions, make_instructions
from tests.helpers.forked import run_forked

ROOT = Path(__file__).parents[2]
ROWS = 24


def _finetune(folder: Path, **changes):
    settings = {"max_steps": 4, "save_steps": 2, "do_eval": None, "evaluation_strategy": None, "eval_steps": None}
    flags = flags_of(folder, folder / "output", **settings | changes)
    return run_forked("finetune_generation.py", *flags, cwd=ROOT)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """The folder of a fine-tuning whose newest checkpoint is that of step 2 of 4."""
    folder = make_instructions(tmp_path_factory.mktemp("tuned"), train=ROWS)
    done = _finetune(folder)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "output" / "checkpoint-4")
    return folder


def _files(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())


def _edited(folder: Path, tmp_path: Path, row: int, **changes: str) -> dict[str, str]:
    """Return the flag of a copy of the data in which one row is another."""
    shutil.copytree(folder / "data", tmp_path / "data")
    file = tmp_path / "data" / "train.json"
    lines = file.read_text().splitlines()
    lines[row] = json.dumps(json.loads(lines[row]) | changes)
    file.write_text("\n".join(lines) + "\n")
    return {"dataset_name_or_path": str(tmp_path / "data")}


def _last_row(folder: Path, tmp_path: Path) -> dict[str, str]:
    return _edited(folder, tmp_path, ROWS - 1, src="Ada has no apples. How many?")


def _label(folder: Path, tmp_path: Path) -> dict[str, str]:
    return _edited(folder, tmp_path, 0, tgt="7 pears")


def _loss_on(folder: Path, tmp_path: Path) -> dict[str, str]:
    return {"loss_on": "all"}


def _packing(folder: Path, tmp_path: Path) -> dict[str, str]:
    return {"zero_padding": "1"}


def _tokenizer(folder: Path, tmp_path: Path) -> dict[str, str]:
    texts = [f"{row['tgt']}\n{row['src']}" for row in instructions(200, 5)]
    train_tokenizer(texts, str(tmp_path / "other"), VOCABULARY)
    return {"tokenizer_name_or_path": str(tmp_path / "other")}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(_last_row, f"of sample {ROWS - 1} (", id="last row"),
        pytest.param(_label, "token ids and labels of sample 0 (", id="label", marks=pytest.mark.slow),
        pytest.param(_loss_on, "different data: labels of sample 0 (", id="loss_on"),
        pytest.param(_packing, "different data: packed rows", id="packing", marks=pytest.mark.slow),
        pytest.param(_tokenizer, "the tokenizer (", id="tokenizer"),
    ],
)
def test_a_fine_tuning_is_not_resumed_with_other_samples(change, named, tuned, tmp_path):
    """Also with the flag that accepts changed settings."""
    before = _files(tuned / "output")
    done = _finetune(tuned, resume_with_changed_settings=True, **change(tuned, tmp_path))
    assert done.returncode == 2, done.stderr
    assert "checkpoint-2 was saved with different data: " in done.stderr and named in done.stderr
    assert _files(tuned / "output") == before


def test_the_same_data_is_resumed_from_another_folder(tuned, tmp_path):
    """Only the content counts; a row that is written in another way has the same samples."""
    shutil.copytree(tuned / "output", tmp_path / "output")
    (tmp_path / "data").mkdir()
    rows = [json.loads(line) for line in (tuned / "data" / "train.json").read_text().splitlines()]
    (tmp_path / "data" / "train.json").write_text("\n".join(json.dumps(row, indent=None) for row in rows) + "\n\n")
    done = _finetune(tuned, output_dir=tmp_path / "output", dataset_name_or_path=tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output" / "checkpoint-4").exists() and "different data" not in done.stderr


# ---- a corpus


def _pretrain(folder: Path):
    flags = ["--model_name_or_path", folder / "llama", "--tokenizer_name_or_path", folder / "tokenizer"]
    flags += ["--input_dir", folder / "data", "--output_dir", folder / "output", "--max_seq_length", "64", "--do_train"]
    flags += ["--max_steps", "4", "--save_steps", "2", "--device", "cpu", "--report_to", "none"]
    return run_forked("run_pretrain.py", *map(str, flags), cwd=ROOT)


def test_a_pretraining_is_not_resumed_with_another_token(tmp_path):
    """Of another tool's corpus, which has no digests: one token in the middle of its last document."""
    folder = make_corpus(tmp_path)
    for name in ("topics.meta.json", "topics.digests.json"):
        (folder / "data" / name).unlink()
    assert _pretrain(folder).returncode == 0
    shutil.rmtree(folder / "output" / "checkpoint-4")
    before = _files(folder / "output")
    tokens = np.memmap(folder / "data" / "topics.bin", dtype="<u2", mode="r+")
    tokens[-5] ^= 1
    tokens.flush()
    done = _pretrain(folder)
    assert done.returncode == 2, done.stderr
    assert f"different data: tokens of the corpus {folder}/data/topics." in done.stderr
    assert _files(folder / "output") == before
    tokens[-5] ^= 1
    tokens.flush()
    done = _pretrain(folder)
    assert done.returncode == 0 and (folder / "output" / "checkpoint-4").exists(), done.stderr
