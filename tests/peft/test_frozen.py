"""What is frozen stays what it was, also where all of a pipeline stage is. (Methods in layouts: `tests/rehearse/finetune_matrix.py`.)"""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.oracle import prove, run_case
from tests.rehearse.cases import make_case


def test_frozen_weights_do_not_change(tmp_path):
    """On every rank, bit for bit; only trained tensors have gradients and moments."""
    layout = Layout(sharding=2, sharding_stage=2)
    for record in run_case(make_case(tmp_path, layout, entry="finetune", global_batch=4, lora=True)):
        first, last = record.steps[1].tensors, record.steps[3].tensors
        for name, part in first["weight"].items():
            trained = ".lora_" in name
            # One process's reference is compared by the oracle; here a rank is with itself.
            assert np.array_equal(part.values, last["weight"][name].values) != trained, name
        for quantity in ("gradient", "moment1", "moment2"):
            assert {name for name in last[quantity] if np.any(last[quantity][name].values)} <= {
                name for name in first["weight"] if ".lora_" in name
            }


@pytest.mark.parametrize("number", [0, 3])
def test_a_pipeline_stage_may_have_nothing_to_train(tmp_path, number):
    """The pattern matches only on the other stage; gradients pass through the whole stage or end in it."""
    targets = [rf".*layers\.{number}\..*q_proj"]
    case = make_case(
        tmp_path, Layout(pipeline=2), entry="finetune", global_batch=4, lora=True, lora_target_modules=targets
    )
    verdict = prove(case)
    assert verdict.passed, verdict.failures[:5]
