"""Checkpoints that version 0.2 wrote (commit 4da69f4, PaddleNLP's pickles) resume on their own layout and run no code.

`tests/fixtures/version_0_2/training` holds a BLOOM with dropout, tied weights and a padded vocabulary, the checkpoint of step 2 of its
training on four ranks (tensor 2, sharding 2 with stage 1), and the rows of all four steps. `rng_state_4.pth`, which was not
read, is omitted.
"""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.checkpoint.folder import is_old
from paddle_llm.config.layout import Layout
from paddle_llm.core.console import collected
from paddle_llm.core.errors import UserError
from paddle_llm.rehearse.ranks import RankError, run_ranks
from tests.helpers.pretrain_jobs import config, make_trainer, rows

WRITTEN = Path(__file__).parents[1] / "fixtures/version_0_2/training"
LAYOUT = Layout(tensor=2, sharding=2, sharding_stage=1)
FIELDS = {"max_steps": 4, "logging_steps": 1, "save_steps": 2, "do_eval": False, "gradient_accumulation_steps": 2}


def _resume(folder: Path, layout: Layout) -> list[str]:
    """Resume on one rank; return the messages."""
    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", layout.world_size)
    run = config(folder, model_name_or_path=str(folder / "bloom"), **FIELDS)
    with collected() as lines:
        make_trainer(run, layout).train(folder / "output/checkpoint-2")
    return lines


@pytest.fixture
def folder(tmp_path):
    config(tmp_path)
    return Path(shutil.copytree(WRITTEN, tmp_path, dirs_exist_ok=True))


def test_it_resumes_on_its_own_layout_with_the_same_rows(folder):
    """Another processor may round differently, so the rows may differ by rounding only."""
    expected = rows(folder / "output")
    lines, *_ = run_ranks(_resume, LAYOUT.world_size, folder, LAYOUT)
    assert len([line for line in lines if "has the format of version 0.2" in line]) == 1
    found = rows(folder / "output")
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    for key in ("loss", "grad_norm", "learning_rate", "consumed_tokens"):
        np.testing.assert_allclose([row[key] for row in found], [row[key] for row in expected], rtol=1e-5)
    assert is_old(folder / "output/checkpoint-2") and not is_old(folder / "output/checkpoint-4")


def test_it_is_refused_on_another_layout(folder):
    with pytest.raises(RankError) as caught:
        run_ranks(_resume, 2, folder, Layout(data=2))
    assert isinstance(caught.value.exception, UserError)
    assert "but this job has layout" in str(caught.value.exception)


class _Evil:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["optimizer.tp00_shard00.pdopt", "random_states_0.pdstate"])
def test_a_pickle_that_names_a_function_is_refused(folder, name):
    file = folder / "output/checkpoint-2" / name
    size = file.stat().st_size
    content = pickle.dumps({"x": _Evil(folder / "proof")}, protocol=4)
    file.write_bytes(content + bytes(size - len(content)))
    with pytest.raises(RankError) as caught:
        run_ranks(_resume, LAYOUT.world_size, folder, LAYOUT)
    assert isinstance(caught.value.exception, UserError), caught.value
    assert f"{name} is refused" in str(caught.value.exception) and "touch" in str(caught.value.exception)
    assert not (folder / "proof").exists()
