"""`--async_save` on several ranks: the same checkpoints on every layout, and one behaviour of all ranks when one fails."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from paddle_llm.checkpoint.folder import newest_complete
from paddle_llm.checkpoint.format.verify import problem_of
from paddle_llm.checkpoint.saving import background
from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.rehearse.ranks import RankError, run_ranks
from tests.checkpoint import faulty_writer
from tests.helpers.models.tiny import write_llama
from tests.helpers.pretrain_jobs import config, make_trainer
from tests.helpers.processes import is_running, wait_until

FIELDS = {"max_steps": 4, "logging_steps": 1, "save_steps": 2, "do_eval": False, "gradient_accumulation_steps": 2}
TWO = Layout(data=2)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _train_twice(folder: Path, layout: Layout, disks: int) -> None:
    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", layout.world_size)
    disk = int(os.environ["PADDLE_TRAINER_ID"]) * disks // layout.world_size
    fields = FIELDS | ({"virtual_pp_degree": layout.virtual_stages} if layout.virtual_stages > 1 else {})
    for name in ("rank", "background"):
        output = folder / f"disk{disk}" / name
        run = config(folder, output_dir=str(output), **fields)
        make_trainer(run, layout, async_save=name == "background").train()


LAYOUTS = [
    (Layout(tensor=2, sharding=2, sharding_stage=2), 1),
    (Layout(sharding=2, sharding_stage=3), 2),
    pytest.param(Layout(pipeline=2, sharding=2, sharding_stage=2), 1, marks=pytest.mark.slow),
    pytest.param(Layout(data=2, tensor=2), 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("layout", "disks"), LAYOUTS, ids=str)
def test_the_files_are_those_of_a_synchronous_save(tmp_path, layout, disks):
    write_llama(tmp_path / "llama", vocab_size=129)
    run_ranks(_train_twice, layout.world_size, tmp_path, layout, disks)
    for disk in range(disks):
        for step in (2, 4):
            one, other = (
                files_of(tmp_path / f"disk{disk}" / name / f"checkpoint-{step}") for name in ("rank", "background")
            )
            assert one == other and "manifest.json" in one


def _train_with_fault(folder: Path, fault: dict, continues: bool, waits_for: int | None = None) -> tuple:
    """Train with a fault in the processes that write; return the step of an error and its message.

    A rank whose number is `waits_for` waits in step 3 for the end of the save after step 2, so that it is known then.
    """
    from paddlenlp.trainer import TrainerCallback

    from paddle_llm.parallel.process.start import start_process

    class Wait(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2 and args.process_index == waits_for:
                wait_until(trainer.saver.has_ended, 100, "the save has ended")

    start_process("cpu", TWO.world_size)
    background.COMMAND = faulty_writer.COMMAND
    os.environ["FAULT"] = json.dumps(fault)
    trainer = make_trainer(config(folder, **FIELDS), TWO, async_save=True, continue_without_save=continues)
    trainer.add_callback(Wait())
    try:
        trainer.train()
    except UserError as error:
        return trainer.state.global_step, str(error)
    return trainer.state.global_step, None


FULL = {"step": 2, "rank": 1, "operation": "write", "action": "full"}
KILLED = {"step": 2, "rank": 1, "operation": "write", "action": "kill"}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (FULL, "checkpoint-2 cannot be written: No space left on device. Free disk space"),
        (
            KILLED,
            "checkpoint-2 cannot be written: the process that writes checkpoints for rank 1 was killed by SIGKILL.",
        ),
    ],
    ids=["full", "killed"],
)
def test_a_failure_stops_all_ranks_at_the_next_step(tmp_path, fault, message):
    config(tmp_path)
    found = run_ranks(_train_with_fault, 2, tmp_path, fault, False, 1)
    assert [step for step, _ in found] == [3, 3]
    assert all(message in text for _, text in found)
    assert newest_complete(tmp_path / "output") == (None, [])
    assert not list((tmp_path / "output").glob(".saving-*"))


@pytest.mark.parametrize(
    "fault", [pytest.param(FULL, marks=pytest.mark.slow, id="full"), pytest.param(KILLED, id="killed")]
)
def test_the_training_continues_without_the_checkpoint(tmp_path, fault):
    config(tmp_path)
    assert run_ranks(_train_with_fault, 2, tmp_path, fault, True) == [(4, None)] * 2
    names = [
        path.name for path in (tmp_path / "output").iterdir() if "checkpoint" in path.name or "saving" in path.name
    ]
    assert names == ["checkpoint-4"] and problem_of(tmp_path / "output/checkpoint-4", "full") is None


def test_a_killed_rank_leaves_the_checkpoint_before_and_no_process(tmp_path):
    config(tmp_path)
    note = tmp_path / "note"
    fault = {"step": 4, "rank": 1, "operation": "write", "action": "kill rank", "note": str(note)}
    with pytest.raises(RankError) as caught:
        run_ranks(_train_with_fault, 2, tmp_path, fault, False)
    assert caught.value.outcomes[1].exit_code == -signal.SIGKILL
    noted = json.loads(note.read_text())
    assert noted["locked"]
    wait_until(lambda: not is_running(noted["pid"]), 60, "the process that writes has ended")
    output = tmp_path / "output"
    assert newest_complete(output) == (output / "checkpoint-2", []) and not (output / "checkpoint-4").exists()


def _train_until_saved(folder: Path) -> None:
    """Train so that the save after step 2 has ended before step 3 ends, in which its end is reported."""
    from paddlenlp.trainer import TrainerCallback

    from paddle_llm.parallel.process.start import start_process

    class Wait(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                wait_until(trainer.saver.has_ended, 100, "the save has ended")

    start_process("cpu", TWO.world_size)
    trainer = make_trainer(config(folder, **FIELDS), TWO, async_save=True)
    trainer.add_callback(Wait())
    trainer.train()


def test_the_end_of_a_save_takes_no_row_of_a_step(tmp_path):
    config(tmp_path)
    run_ranks(_train_until_saved, 2, tmp_path)
    written = [json.loads(line) for line in (tmp_path / "output/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in written if "save_seconds" in row] == [2, 4]
