"""A job passes over a damaged checkpoint, names the file, and computes what it would have from the one before it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from paddle_llm.checkpoint.format.reader import Reader
from tests.checkpoint.format.test_verify import reseal
from tests.helpers.finetune_jobs import flags_of, make_instructions
from tests.helpers.forked import run_forked
from tests.helpers.pretrain_jobs import numbers

ROOT = Path(__file__).parents[2]


def _poison(checkpoint: Path, key: str) -> str:
    """Write a NaN into a tensor, with the right digest; return the name of its file."""
    with Reader(checkpoint) as reader:
        part = reader.index.tensors[key].parts[0]
    with (checkpoint / part.file).open("r+b") as stream:
        stream.seek(part.offset)
        stream.write(np.float32("nan").tobytes())
    reseal(checkpoint)
    return part.file


def test_weights_with_nan_are_passed_over(tmp_path):
    flags = flags_of(make_instructions(tmp_path / "data"), tmp_path / "output", save_steps=2, max_steps=4)
    first = run_forked("finetune_generation.py", *flags, cwd=ROOT)
    assert first.returncode == 0, first.stderr
    shutil.copytree(tmp_path / "output", tmp_path / "whole")
    damaged = tmp_path / "output/checkpoint-4"
    file = _poison(damaged, "weights/llama.norm.weight")
    done = run_forked("finetune_generation.py", *flags, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"skipped checkpoint {damaged}: {file} contains NaN or infinity in weights/llama.norm.weight" in done.stderr
    assert f"resuming from {tmp_path / 'output/checkpoint-2'}" in done.stderr
    assert numbers(tmp_path / "output") == numbers(tmp_path / "whole")
    named = run_forked("finetune_generation.py", *flags, "--resume_from_checkpoint", _named(tmp_path), cwd=ROOT)
    assert named.returncode == 2 and f"{file} contains NaN" in named.stderr and "Traceback" not in named.stderr
    assert numbers(tmp_path / "output") == numbers(tmp_path / "whole")


def _named(folder: Path) -> str:
    checkpoint = folder / "output/left-checkpoint-4"
    assert checkpoint.is_dir()  # the damaged one was set aside
    return str(checkpoint)
