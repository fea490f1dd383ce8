"""Fine-tuning in layouts equals one process: the fast rows of its matrix. The list of rows is complete."""

from __future__ import annotations

import re
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.config.methods import method_problems
from paddle_llm.peft.method import method_of
from tests.rehearse.cases import make_case
from tests.rehearse.covering import pairs_of, sort_pairs
from tests.rehearse.finetune_matrix import FINETUNE_FAST, PP, STAGE2, TP, build_finetune_matrix, model_rows
from tests.rehearse.matrix import Matrix
from tests.rehearse.options import RowChecker, case_of, config_of, layout_of, name_of
from tests.rehearse.proving import Prover
from tests.rehearse.spaces import FINETUNING, METHODS, PLAIN, Row


@pytest.fixture(scope="module")
def prover() -> Prover:
    return Prover()


@pytest.mark.parametrize("row", FINETUNE_FAST, ids=name_of)
def test_a_row_equals_one_process(row, prover, tmp_path):
    verdict = prover(case_of(tmp_path, row))
    assert verdict.passed, "\n".join(map(str, verdict.failures[:10]))


def test_the_fast_rows_have_every_family_method_and_option():
    unseen = {name: set(values) - {row[name] for row in FINETUNE_FAST} for name, values in FINETUNING.options.items()}
    assert {name: values for name, values in unseen.items() if values} == {
        "method": {"projected prefix"},
        "micro_batches": {1},
        "tied": {True},
    }
    layouts = [row["layout"] for row in FINETUNE_FAST]
    for degree in ("data", "sharding", "tensor", "pipeline"):
        assert any(getattr(layout, degree) > 1 for layout in layouts)
    assert any(layout.tensor > 1 < layout.pipeline for layout in layouts)


@pytest.mark.parametrize("packed", [False, True])
def test_samples_have_unequal_lengths_and_numbers_of_labels(packed, tmp_path):
    """They differ between micro-batches, data ranks and steps: otherwise a mean over the wrong set would not be detected."""
    case = make_case(tmp_path, Layout(data=2), entry="finetune", packed=packed, global_batch=4)
    labels = np.array([int((sample["labels"] != -100).sum()) for sample in case.train]).reshape(3, 2, 2)
    assert len({len(sample["input_ids"]) for sample in case.train}) > 3
    for axis in (1, 2):
        sums = labels.sum(axis=axis)
        assert (sums[:, 0] != sums[:, 1]).sum() >= 2, "of three steps"
    assert len(set(labels.sum(axis=(1, 2)))) == 3
    if packed:
        assert {1, 2, 3} <= {len(sample["segment_lengths"]) for sample in case.train}


# --- the list ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checker(tmp_path_factory) -> RowChecker:
    return RowChecker(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def matrix(checker) -> Matrix:
    return build_finetune_matrix(checker)


def test_every_model_has_full_lora_and_prefix_in_every_supported_layout(matrix):
    """7 x 3 x 3 rows, except for the pipelines that PaddleNLP lacks."""
    rows = model_rows()
    found = {(row["family"], row["method"], row["layout"]) for row in rows}
    families = ("llama", "chatglm", "chatglm_v2", "bloom", "opt", "glm", "qwen2")
    assert found == set(product(families, ("full", "LoRA", "prefix"), (TP, STAGE2, PP)))
    refused = {name_of(row) for row in rows if row["layout"] == PP and row["family"] in ("chatglm", "opt", "glm")}
    assert matrix.rejected.keys() == refused and len(refused) == 9
    assert all("PaddleNLP has no pipeline for" in why for why in matrix.rejected.values())
    assert {name_of(row) for row in rows} - refused <= matrix.rows.keys()
    for row in rows:
        assert row["micro_batches"] > 1, "several micro-batches in every step"


def test_every_allowed_pair_is_covered(matrix, checker):
    allowed, forbidden = sort_pairs(FINETUNING, checker)
    covered = {pair for row in matrix.rows.values() for pair in pairs_of(row)}
    assert set(allowed) <= covered
    assert not covered & forbidden.keys()
    assert forbidden == matrix.forbidden and all(forbidden.values())


def test_methods_are_excluded_by_their_own_rules(checker, tmp_path):
    """The reader decides: its messages about method, layout and family are those of `method_problems`."""
    allowed, forbidden = sort_pairs(FINETUNING, checker)
    for pair in (pair for pair in [*allowed, *forbidden] if "method" in {name for name, _ in pair}):
        row = FINETUNING.plain | dict(pair)
        if "layout" in row:
            problems = [*_method_problems(row, tmp_path), *_pipeline_problems(row)]
        else:
            problems = list(_method_problems(row | {"layout": TP}, tmp_path))
        assert bool(problems) == (pair in forbidden), (pair, problems, forbidden.get(pair))


def _method_problems(row: Row, folder: Any) -> list[str]:
    method = method_of(config_of(folder, row))
    packed = row["samples"] == "packed"
    return list(
        method_problems(
            method.name,
            layout_of(row),
            row["family"],
            packed=packed,
            prefix_projection=method.prefix_projection,
            dora=method.dora,
        )
    )


def _pipeline_problems(row: Row) -> list[str]:
    return [] if row["layout"].pipeline == 1 or row["family"] == "llama" else ["it has no pipeline"]


FORBIDDEN = {
    ("layout", "family"): "has no pipeline for",
    ("layout", "sequence_parallel"): "sequence_parallel with tensor_parallel_degree = 1",
    ("family", "sequence_parallel"): "sequence_parallel is not supported for",
    ("family", "samples"): "is not supported for",
    ("family", "key_value_heads"): "no key for key_value_heads",
    ("family", "tied"): "no key for tied",
    ("layout", "method"): "pipeline_parallel_degree = 2|sharding stage3",
    ("family", "method"): "is not supported for",
    ("method", "samples"): "prompt tuning with --zero_padding",
}


def test_every_forbidden_pair_has_an_expected_reason(checker):
    _, forbidden = sort_pairs(FINETUNING, checker)
    for ((first, _), (second, _)), why in forbidden.items():
        assert (first, second) in FORBIDDEN, (first, second, why)
        assert re.search(FORBIDDEN[first, second], why), why


def test_rows_are_the_same_each_time(matrix, checker):
    assert list(build_finetune_matrix(checker).rows) == list(matrix.rows)


def test_the_matrix_has_all_methods():
    from paddle_llm.config.methods import METHODS as KNOWN
    from paddle_llm.config.run_config import RunConfig

    assert {method_of(RunConfig(**settings)).name for settings in METHODS.values()} == set(KNOWN)
    assert set(FINETUNING.options["method"]) == set(METHODS)
    assert FINETUNING.plain.keys() == PLAIN.keys()
    for one, two in combinations(FINETUNE_FAST, 2):
        assert name_of(one) != name_of(two)
