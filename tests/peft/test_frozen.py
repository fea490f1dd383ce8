"""Frozen weights do not change, also if a whole pipeline stage is frozen. `tests/rehearse/finetune_matrix.py` has methods in layouts."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.oracle import prove, run_case
from tests.rehearse.cases import make_case


def test_frozen_weights_do_not_change(tmp_path):
    """They are equal bit for bit on every rank. Only trained tensors have gradients and moments."""
    layout = Layout(sharding=2, sharding_stage=2)
    for record in run_case(make_case(tmp_path, layout, entry="finetune", global_batch=4, lora=True)):
        first, last = record.steps[1].tensors, record.steps[3].tensors
        for name, part in first["weight"].items():
            trained = ".lora_" in name
            # The oracle compares ranks with one process; this test compares a rank with itself.
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
