"""Jobs of two ranks of which one gets a real signal: both save the same step, and the resumed run is exact."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.pretrain_jobs import config, make_trainer, numbers, whole_weights

ROOT = Path(__file__).parents[2]
# Rank that gets a signal, the signal, the method that is running, completed steps, number of the call.
SIGNALS = (
    (1, signal.SIGTERM, "training_step", 1, 0),
    (0, signal.SIGUSR1, "evaluate", 6, 0),
    (1, signal.SIGINT, "_save_checkpoint", 10, 0),
)
# Of these steps; the last one is also due without a signal.
SAVED = [2, 6, 10]


def _interrupted_and_whole(folder: Path, layout: Layout, plan: tuple) -> dict:
    """Train once without and once with the signals of a plan, each time resumed, and return what the two have in common."""
    import numpy as np

    from paddle_llm.checkpoint.folder import newest_complete
    from paddle_llm.core.errors import StopRequested
    from paddle_llm.parallel.process.start import start_process
    from paddle_llm.parallel.process.stop_request import stop_on_signals
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

    start_process("cpu", layout.world_size)
    rank = int(os.environ["PADDLE_TRAINER_ID"])

    def signal_once(number, name, step, call):
        original, calls = getattr(PretrainTrainer, name), []

        def method(self, *args, **kwargs):
            if self.state.global_step == step:
                if len(calls) == call:
                    os.kill(os.getpid(), number)
                calls.append(1)
            return original(self, *args, **kwargs)

        setattr(PretrainTrainer, name, method)
        return lambda: setattr(PretrainTrainer, name, original)

    whole = make_trainer(config(folder / "whole"), layout)
    whole.train()
    found: dict = {"codes": [], "saved": [], "messages": []}
    run, start = config(folder / "stopped"), None
    for target, *when in plan:
        undo = signal_once(*when) if target == rank else (lambda: None)
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # ignored since the last stop, as at the end of a process
        trainer = make_trainer(run, layout)
        try:
            with stop_on_signals(True):
                trainer.train(start)
        except StopRequested as stop:
            found["codes"].append(stop.code)
            found["messages"].append(stop.message)
        undo()
        start = str(newest_complete(folder / "stopped" / "output")[0])
        found["saved"].append(int(start.rpartition("-")[2]))
    resumed = make_trainer(run, layout)
    resumed.train(start)
    expected = whole_weights(whole)
    found["equal"] = all(np.array_equal(expected[name], value) for name, value in whole_weights(resumed).items())
    return found


@pytest.mark.parametrize(
    "layout",
    [
        Layout(data=2),
        Layout(pipeline=2),
        pytest.param(Layout(sharding=2, sharding_stage=3), marks=pytest.mark.slow),
        pytest.param(Layout(tensor=2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_signal_to_one_rank_stops_both_after_the_same_step(layout, tmp_path):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        config(tmp_path / name)
    for found in run_ranks(_interrupted_and_whole, 2, tmp_path, layout, SIGNALS):
        assert found["codes"] == [75, 75, 75] and found["saved"] == SAVED
        for (rank, number, *_), message in zip(SIGNALS, found["messages"], strict=True):
            assert message.startswith(f"{number.name} was received by rank {rank}. The state after step")
        assert found["equal"]
    assert numbers(tmp_path / "stopped" / "output") == numbers(tmp_path / "whole" / "output")


# Trains with a data loading worker; SIGTERM goes to the process group, as Paddle's launcher sends it.
SIGNALLED_GROUP = """
import os, signal
from pathlib import Path

from paddle_llm.core.errors import exit_on_user_error
from paddle_llm.parallel.process.start import start_process
from paddle_llm.parallel.process.stop_request import stop_on_signals

start_process("cpu", 1)

from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer
from tests.helpers.pretrain_jobs import config, make_trainer
from tests.helpers.processes import descendants, running

original = PretrainTrainer.training_step

def training_step(self, *args, **kwargs):
    if self.state.global_step == 3 and PretrainTrainer.training_step is training_step:
        PretrainTrainer.training_step = original
        workers = descendants(os.getpid())
        os.killpg(0, signal.SIGTERM)
        print("running:", len(running(workers)), "of", len(workers))
    return original(self, *args, **kwargs)

PretrainTrainer.training_step = training_step
with exit_on_user_error(), stop_on_signals(True):
    make_trainer(config(Path("."), dataloader_num_workers=1, do_eval=False)).train()
"""


def test_a_signal_to_the_process_group_leaves_the_data_loading_workers(tmp_path):
    (tmp_path / "train.py").write_text(SIGNALLED_GROUP)
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 75, done.stderr
    assert "running: 1 of 1" in done.stdout and "The state after step 4 is in" in done.stderr
