"""Machines with separate disks: each disk gets what its ranks need to resume. Ranks with another output folder stand for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paddle_llm.checkpoint.folder import why_incomplete
from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.rehearse.ranks import RankError, run_ranks
from tests.helpers.models.tiny import write_llama
from tests.helpers.pretrain_jobs import config, make_trainer, numbers

LAYOUT = Layout(tensor=2, sharding=2, sharding_stage=1)
FIELDS = {"max_steps": 4, "logging_steps": 1, "save_steps": 2, "do_eval": False, "gradient_accumulation_steps": 2}


def _disk(folder: Path) -> Path:
    """Return the disk of this rank: two ranks share one."""
    return folder / f"disk{int(os.environ['PADDLE_TRAINER_ID']) // 2}"


def _train(folder: Path, layout: Layout, resume: bool) -> None:
    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", layout.world_size)
    output = _disk(folder) / "output"
    trainer = make_trainer(config(folder, output_dir=str(output), **FIELDS), layout)
    trainer.train(output / "checkpoint-2" if resume else None)


def test_each_disk_has_a_checkpoint_that_its_ranks_resume_from(tmp_path):
    write_llama(tmp_path / "llama", vocab_size=129)
    run_ranks(_train, LAYOUT.world_size, tmp_path, LAYOUT, False)
    expected = numbers(tmp_path / "disk0/output")
    for disk in ("disk0", "disk1"):
        folder = tmp_path / disk / "output/checkpoint-2"
        assert why_incomplete(folder) is None
        assert len(list(folder.glob("rank-*.safetensors"))) == len(list(folder.glob("random-*.json"))) == 2
    run_ranks(_train, LAYOUT.world_size, tmp_path, LAYOUT, True)
    assert numbers(tmp_path / "disk0/output") == expected
    with pytest.raises(RankError) as caught:
        run_ranks(_train, 2, tmp_path, Layout(data=2), True)
    assert isinstance(caught.value.exception, UserError)
    assert "each machine wrote to its own disk" in str(caught.value.exception)
