"""A training continues on another layout: the same state in every bit, every sample once, the losses of one process."""

from __future__ import annotations

from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from tests.checkpoint.layout_runs import BATCH, Part, different_tensors, losses, run_part
from tests.helpers.models.tiny import write_llama

ONE = Layout()
LAYOUTS = {
    "one process": ONE,
    "data": Layout(data=2),
    "stage 1": Layout(sharding=2, sharding_stage=1),
    "stage 3": Layout(sharding=2, sharding_stage=3),
    "tensor, sequence parallel": Layout(tensor=2, sequence_parallel=True),
    "stage 2, tensor": Layout(sharding=2, sharding_stage=2, tensor=2),
    "pipeline, virtual stages": Layout(pipeline=4, virtual_stages=2),
    "pipeline, stage 2": Layout(pipeline=2, sharding=2, sharding_stage=2),
}
# Every layout is the source and the target of a change; 12 changes.
CHAIN = [
    *("one process", "stage 2, tensor", "pipeline, virtual stages", "data", "stage 3", "tensor, sequence parallel"),
    *(
        "pipeline, stage 2",
        "stage 1",
        "stage 2, tensor",
        "stage 3",
        "pipeline, virtual stages",
        "one process",
        "stage 1",
    ),
]


def _model(folder: Path) -> None:
    """Write a network with tied weights, grouped heads and a vocabulary that is padded for tensor parallelism."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8, "num_key_value_heads": 2}
    write_llama(folder / "llama", vocab_size=129, tie_word_embeddings=True, **shape)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Return the losses of one process."""
    folder = tmp_path_factory.mktemp("one")
    _model(folder)
    run_part(folder, Part(ONE, len(CHAIN)))
    return losses(folder)


def _check_part(folder: Path, part: Part, expected: dict[int, float]) -> None:
    """Train a part and check the loaded state, the samples and the losses."""
    read = run_part(folder, part)
    first = 0
    if part.start is not None:
        first = int(part.start.name.partition("-")[2])
        assert different_tensors(part.start, folder / "loaded" / part.start.name) == []
    layout = part.layout
    copies = layout.tensor * layout.pipeline
    assert sorted(sum(read, [])) == sorted(list(range(first * BATCH, part.last * BATCH)) * copies)
    found = losses(folder)
    for step in range(first + 1, part.last + 1):
        np.testing.assert_allclose(found[step], expected[step], rtol=5e-6, err_msg=f"step {step}")


@pytest.mark.timeout(300)
def test_a_training_changes_its_layout_after_every_step(tmp_path, one_process):
    _model(tmp_path)
    start = None
    for step, name in enumerate(CHAIN, 1):
        _check_part(tmp_path, Part(LAYOUTS[name], step, start), one_process)
        start = tmp_path / "output" / f"checkpoint-{step}"
    assert len(set(pairwise(CHAIN))) == 12


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Return the folder of a checkpoint of each layout, written when it is needed."""
    written: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in written:
            folder = tmp_path_factory.mktemp("source")
            _model(folder)
            run_part(folder, Part(LAYOUTS[name], 2))
            written[name] = folder / "output" / "checkpoint-2"
        return written[name]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("source, target", permutations(LAYOUTS, 2))
def test_every_layout_continues_on_every_other_one(source, target, tmp_path, one_process, checkpoints):
    _model(tmp_path)
    _check_part(tmp_path, Part(LAYOUTS[target], 4, checkpoints(source)), one_process)
