"""The line about the size of a job: parameters of the whole model, tokens or samples of a step."""

from __future__ import annotations

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.config.reader import Resolved
from paddle_llm.config.run_config import RunConfig
from paddle_llm.training.metrics.size import describe_size
from tests.helpers.models.networks import build
from tests.helpers.models.tiny import write_llama


@pytest.mark.parametrize("entry", ["pretrain", "finetune"])
@pytest.mark.parametrize("frozen", [False, True])
def test_parameters_and_batch(entry, frozen, tmp_path):
    write_llama(tmp_path)
    model = build(tmp_path)
    total = sum(int(parameter.size) for parameter in model.parameters())
    if frozen:
        next(iter(model.parameters())).stop_gradient = True
    config = RunConfig(model_name_or_path=str(tmp_path), output_dir="o", max_seq_length=64, max_length=32)
    resolved = Resolved(config, Layout(), read_model_facts(tmp_path), {}, [], entry=entry)
    line = describe_size(model, resolved, 6)
    assert (f"parameters: {total:,}, all trained" in line) is not frozen
    assert (
        "tokens per step: 384 (6 samples of 64)" if entry == "pretrain" else "samples per step: 6, of at most 32"
    ) in line
