"""Evaluation by generation: the same scores and texts in every layout, and no effect on the training."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.data.tokenizer import train_tokenizer
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.corpus import english_and_chinese
from tests.helpers.models.tiny import write_llama
from tests.training import generation_runs
from tests.training.generation_runs import Run

SAMPLED = {"temperature": 1.5, "top_p": 0.9}
RUNS = {
    "greedy": {},
    "sampled": SAMPLED,
    "beams": {"num_beams": 3, "generation_max_new_tokens": 5},
}
ALONE = Layout()
LAYOUTS = {
    "dp2": Layout(data=2),
    "tp2": Layout(tensor=2),
    "stage3": Layout(sharding=2, sharding_stage=3),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a LLaMA with 701 tokens, which no tensor degree divides, and its tokenizer."""
    folder = tmp_path_factory.mktemp("generation")
    train_tokenizer(english_and_chinese(300), str(folder / "tokenizer"), 700)
    write_llama(folder / "llama", vocab_size=701, initializer_range=0.3, num_hidden_layers=2)
    return folder


def run(folder, name, layout=ALONE, kinds=tuple(RUNS), **changes):
    """Return the results of each rank by kind of run; their files are in folder / name / kind."""
    common = {"generation_max_new_tokens": 9}
    if layout.sharding > 1:
        common["sharding"] = "stage3"
    degrees = {
        "data_parallel_degree": layout.data,
        "tensor_parallel_degree": layout.tensor,
        "sharding_parallel_degree": layout.sharding,
    }
    runs = {kind: Run(layout, {**common, **RUNS[kind], **degrees}, **changes) for kind in kinds}
    return run_ranks(
        generation_runs.train, layout.world_size, runs, folder, str(folder / "tokenizer"), folder / name, quiet=True
    )


def texts(folder, name, kind):
    lines = (folder / name / kind / "generated-2.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def alone(folder):
    return run(folder, "alone")[0]


def test_every_conversation_is_answered_once_and_in_order(folder, alone):
    for kind in RUNS:
        rows = texts(folder, "alone", kind)
        assert [row["where"] for row in rows] == [f"line {number}" for number in range(9)]
        assert rows[8]["reference"] == "疑是地上霜"
        assert rows[8]["prompt"] == "<s> Who wrote it? answer 0</s> And when?"
        assert alone[kind]["scores"]["eval_generated"] == 9
        assert set(alone[kind]["scores"]) == {
            f"eval_{name}" for name in ("bleu", "rouge1", "rouge2", "rougeL", "exact_match", "generated")
        }
        assert len({row["generated"] for row in rows}) > 4  # not one text for all
    greedy, sampled = (texts(folder, "alone", kind) for kind in ("greedy", "sampled"))
    assert greedy[0]["generated"] == greedy[5]["generated"]  # the same question
    assert sampled[0]["generated"] != sampled[5]["generated"]  # drawn for each text by itself


def test_an_evaluation_has_no_effect_on_the_training(folder, alone):
    silent = run(folder, "silent", kinds=("greedy",), evaluates=False)[0]["greedy"]
    for kind in RUNS:
        assert alone[kind]["undisturbed"]
        for name, value in silent["weights"].items():
            assert np.array_equal(value, alone[kind]["weights"][name]), name


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_generate_the_same(folder, alone, name):
    ranks = run(folder, name, LAYOUTS[name])
    for kind in RUNS:
        assert all(rank[kind]["undisturbed"] for rank in ranks)
        assert ranks[0][kind]["scores"] == ranks[1][kind]["scores"] == alone[kind]["scores"]
        assert texts(folder, name, kind) == texts(folder, "alone", kind)


@pytest.mark.parametrize("layout", [ALONE, Layout(data=2)], ids=str)
def test_a_signal_ends_the_generation_after_a_batch(layout, folder):
    """With two data ranks one has three batches and the other two; the signal goes to the second."""
    for rank in run(folder, f"stopped {layout}", layout, ("greedy",), stops=True):
        found = rank["greedy"]
        assert found["answers"] == 2 and found["undisturbed"] and found["code"] == 75 and "scores" not in found
    assert not list((folder / f"stopped {layout}").rglob("generated-*.jsonl"))


def test_layouts_that_cannot_generate_are_rejected():
    from paddle_llm.core.errors import UserError
    from paddle_llm.training.evaluation.generation import check_layout

    check_layout(Layout(tensor=2, sharding=2, sharding_stage=3))
    with pytest.raises(UserError, match="pipeline"):
        check_layout(Layout(pipeline=2))
    with pytest.raises(UserError, match="sequence"):
        check_layout(replace(Layout(tensor=2), sequence_parallel=True))
