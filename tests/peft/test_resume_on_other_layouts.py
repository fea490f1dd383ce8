"""Adapters of a training continue on another layout: moments, and AdaLoRA's importance and removed ranks."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.checkpoint.format.reader import Reader
from tests.helpers.finetune_jobs import finetune, make_instructions
from tests.helpers.pretrain_jobs import rows

TENSOR = {"tensor_parallel_degree": 2}
PIPELINE = {"pipeline_parallel_degree": 2}
SHARDED = {"sharding": "stage2", "sharding_parallel_degree": 2, "gradient_accumulation_steps": 1}
CASES = {
    "adalora": ({"adalora": True, "lora_rank": 2, "adalora_budget_interval": 1}, TENSOR),
    "packed lora": ({"lora": True, "lora_rank": 4, "zero_padding": True}, PIPELINE),
    "lora": ({"lora": True, "lora_rank": 4, "modules_to_save": "embed_tokens"}, SHARDED),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_instructions(tmp_path_factory.mktemp("instructions"))


@pytest.mark.parametrize("method", CASES)
def test_an_adapter_continues_on_two_ranks_as_in_one_process(method, folder, tmp_path):
    flags, ranks = CASES[method]
    constant = {"lr_scheduler_type": "constant", "logging_steps": 1, **flags}
    (whole,) = finetune(folder, tmp_path / "whole", **constant)
    finetune(folder, tmp_path / "cut", until=3, **constant)
    finetune(folder, tmp_path / "cut", 2, **{**constant, **ranks})
    expected, found = ([row for row in rows(tmp_path / name) if "loss" in row] for name in ("whole", "cut"))
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([row["loss"] for row in found], [row["loss"] for row in expected], rtol=2e-5)
    with Reader(tmp_path / "whole/checkpoint-6") as one, Reader(tmp_path / "cut/checkpoint-6") as other:
        keys = [key for key in one.keys(None) if not key.startswith("state/random/")]
        assert keys == [key for key in other.keys(None) if not key.startswith("state/random/")]
        for key in keys:
            values, others = one.tensor(key), other.tensor(key)
            if "/kept/" in key or key.endswith("_pow_acc"):
                assert np.array_equal(values, others), key
            else:
                assert np.linalg.norm(values - others) <= 2e-3 * np.linalg.norm(values) + 1e-12, key
    assert whole["steps"] == 6
