"""A rank that resumes on another layout needs memory for its own state, one tensor and a buffer, not for the whole checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.models.tiny import write_llama
from tests.helpers.pretrain_jobs import config, make_trainer

MB = 2**20
BUFFER = 256 * MB
FIELDS = {"save_steps": 1, "do_eval": False, "logging_steps": 1, "gradient_accumulation_steps": 2}


def _status(key: str) -> int:
    """Return an entry of this process's status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _train(folder: Path, layout: Layout, steps: int, start: Path | None) -> dict[str, int]:
    """Train on one rank; return the bytes of the checkpoint's state on this rank, and the memory that loading took."""
    from paddle_llm.checkpoint.training_state.optimizer_state import OptimizerState
    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", layout.world_size)
    fields = FIELDS | {"gradient_accumulation_steps": 2 // layout.data_world_size}
    trainer = make_trainer(config(folder, max_steps=steps, **fields), layout)
    found: dict[str, int] = {}
    load = trainer._load_optimizer_and_scheduler

    def measured(checkpoint: str | None) -> None:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM is counted from now on
        load(checkpoint)
        found["peak"] = _status("VmHWM") - before
        optimizer = OptimizerState(trainer.optimizer)
        sizes = [p.size * 4 for p in trainer.model.parameters()]
        states = (t for p in trainer.model.parameters() for t in optimizer.states(p).values())
        found["own"] = sum(t.size * 4 for t in states)
        found["largest"] = max(sizes)
        found["weights"] = sum(sizes)

    trainer._load_optimizer_and_scheduler = measured
    trainer.train(start)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_rank_reads_a_checkpoint_of_1_4_gb_with_little_memory(tmp_path):
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 8}
    write_llama(tmp_path / "llama", **shape, num_key_value_heads=8, vocab_size=8192)
    run_ranks(_train, 1, tmp_path, Layout(), 1, None, timeout=400)
    start = tmp_path / "output/checkpoint-1"
    assert sum(file.stat().st_size for file in start.glob("rank-*")) > 1.3e9
    for layout in (Layout(tensor=2), Layout(sharding=2, sharding_stage=2)):
        for found in run_ranks(_train, 2, tmp_path, layout, 2, start, timeout=400):
            assert found["own"] < 600e6
            assert found["peak"] <= found["own"] + found["largest"] + BUFFER, found
