"""The fast rows of the matrix equal one process, also with a usual epsilon; the lists of rows are complete."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.oracle import prove
from tests.rehearse.cases import make_case
from tests.rehearse.covering import pairs_of, sort_pairs
from tests.rehearse.matrix import FAST, Matrix, build_matrix, degree_rows
from tests.rehearse.options import RowChecker, case_of, layout_of, name_of
from tests.rehearse.proving import Prover
from tests.rehearse.spaces import OPTIONS, PLAIN, PRETRAINING


@pytest.fixture(scope="module")
def prover() -> Prover:
    return Prover()


@pytest.mark.parametrize("row", FAST, ids=name_of)
def test_a_row_equals_one_process(row, prover, tmp_path):
    verdict = prover(case_of(tmp_path, row))
    assert verdict.passed, "\n".join(map(str, verdict.failures[:10]))


def test_the_fast_rows_touch_every_pair_of_dimensions_and_every_stage():
    axes = ("data", "sharding", "tensor", "pipeline")
    layouts = [layout_of(row) for row in FAST]
    for one, two in combinations(axes, 2):
        assert any(getattr(layout, one) > 1 and getattr(layout, two) > 1 for layout in layouts), (one, two)
    assert {layout.sharding_stage for layout in layouts} == {0, 1, 2, 3}
    assert {row["family"] for row in FAST} == set(OPTIONS["family"])
    for name, values in OPTIONS.items():
        assert len({row[name] for row in FAST}) > 1 or len(values) == 1, name


# The epsilon that trainings use. Adam moves an element by lr * m / (sqrt(v) + epsilon), which is about lr even for a tiny
# gradient: an element whose gradient is mostly rounding error moves by up to lr in either direction. One process compared
# with itself in another order of sums reaches 2e-4 in a weight (a bias that starts at zero and consists of such steps) and 1e-5
# in a gradient after the first step; layouts reached 3e-4 and 1.1e-5. Values before the first update, losses and norms keep
# their limits.
PRODUCTION_EPSILON = 1e-8
PRODUCTION_LIMITS = {"gradient": 1e-4, "weight": 1e-3, "moment1": 1e-4, "moment2": 1e-4}


@pytest.mark.parametrize(
    ("layout", "family"),
    [(Layout(tensor=2), "chatglm_v2"), (Layout(sharding=2, sharding_stage=2, pipeline=2), "llama")],
    ids=str,
)
def test_a_layout_equals_one_process_with_the_usual_epsilon(layout, family, tmp_path):
    settings = {"adam_epsilon": PRODUCTION_EPSILON, "max_grad_norm": 1.0, "family": family}
    verdict = prove(make_case(tmp_path, layout, **settings), limits={"weight": PRODUCTION_LIMITS["weight"]})
    more = [
        found for found in verdict.failures if found.step == 1 or found.value > PRODUCTION_LIMITS.get(found.quantity, 0)
    ]
    assert not more, "\n".join(map(str, more[:10]))


# --- the lists ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checker(tmp_path_factory) -> RowChecker:
    return RowChecker(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def matrix(checker) -> Matrix:
    return build_matrix(checker)


def test_all_degrees_are_included_or_rejected(matrix):
    """63 tuples have a product of at most 8. Those with sharding occur at three stages; stage 3 with a pipeline is rejected."""
    rows = degree_rows()
    assert len({(la.data, la.sharding, la.tensor, la.pipeline) for la in (row["layout"] for row in rows)}) == 63
    assert len(rows) == 38 + 3 * 25
    refused = {name_of(row) for row in rows if row["layout"].sharding_stage == 3 and row["layout"].pipeline > 1}
    assert matrix.rejected.keys() == refused and len(refused) == 7
    assert all("stage3 with pipeline_parallel_degree" in why for why in matrix.rejected.values())
    assert {name_of(row) for row in rows} - refused <= matrix.rows.keys()


def test_16_ranks_have_all_four_degrees_above_one(matrix):
    layouts = [layout_of(row) for row in matrix.rows.values() if layout_of(row).world_size == 16]
    assert layouts == [Layout(2, 2, 2, 2, sharding_stage=stage) for stage in (1, 2)]


def test_every_allowed_pair_is_covered(matrix, checker):
    allowed, forbidden = sort_pairs(PRETRAINING, checker)
    covered = {pair for row in matrix.rows.values() for pair in pairs_of(row)}
    assert set(allowed) <= covered
    assert not covered & forbidden.keys()
    assert forbidden == matrix.forbidden and all(forbidden.values())


def test_rows_are_the_same_each_time(matrix, checker):
    assert list(build_matrix(checker).rows) == list(matrix.rows)


def test_micro_batches_are_fewer_than_stages_as_many_and_more(matrix):
    pairs = [(row["micro_batches"], layout_of(row).pipeline) for row in matrix.rows.values()]
    found = {(count > stages) - (count < stages) for count, stages in pairs if stages > 1}
    assert found == {-1, 0, 1}


# Dimensions -> which of their values exclude each other, and the reader's message. All other pairs are covered.
FORBIDDEN: dict[tuple[str, str], tuple[Callable[[Any, Any], bool], str]] = {
    ("layout", "virtual_stages"): (
        lambda layout, virtual: layout.pipeline < 3 and virtual != 1,
        r"virtual_pp_degree = 2 with pipeline_parallel_degree = \d: virtual stages need (a pipeline|more than 2 pipeline stages)",
    ),
    ("layout", "layers"): (lambda layout, layers: layout.pipeline == 1 and layers != "divide", "there are no stages"),
    ("layout", "sequence_parallel"): (
        lambda layout, sequence: layout.tensor == 1 and sequence != "",
        "sequence_parallel with tensor_parallel_degree = 1",
    ),
    ("layout", "pipeline_switches"): (
        lambda layout, switches: layout.pipeline == 1 and switches != "",
        "has no effect: pipeline_parallel_degree is 1",
    ),
    ("layout", "topo_order"): (
        lambda layout, order: 1 in (layout.pipeline, layout.sharding) and order != "pp_first",
        "has no effect: it orders pipeline stages and sharding ranks",
    ),
    ("family", "sequence_parallel"): (
        lambda family, sequence: family == "bloom" and sequence != "",
        "sequence_parallel is not supported for BLOOM",
    ),
    ("family", "key_value_heads"): (
        lambda family, heads: family == "bloom" and heads != "all",
        "no key for key_value",
    ),
    ("family", "tied"): (lambda family, tied: family != "llama" and tied, "no key for tied"),
    ("family", "fused"): (lambda family, fused: family != "llama" and fused != "", "no key for fused"),
    ("virtual_stages", "layers"): (
        lambda virtual, layers: virtual != 1 and layers != "divide",
        "virtual_pp_degree = 2 x pipeline_parallel_degree = 3 does not divide the 7 layers of the model",
    ),
    ("virtual_stages", "micro_batches"): (
        lambda virtual, count: virtual != 1 and count < 6,
        r"virtual_pp_degree = 2 with gradient_accumulation_steps = \d: virtual stages need two micro-batches per pipeline stage",
    ),
    ("micro_batches", "pipeline_switches"): (
        lambda count, switches: count == 1 and switches == "enable_delay_scale_loss",
        "has no effect: gradient_accumulation_steps is 1",
    ),
}


def test_forbidden_pairs_are_those_of_the_rules(checker):
    allowed, forbidden = sort_pairs(PRETRAINING, checker)
    for (first, one), (second, two) in [*allowed, *forbidden]:
        excludes, reason = FORBIDDEN.get((first, second), (lambda *_: False, ""))
        why = forbidden.get(((first, one), (second, two)))
        assert bool(excludes(one, two)) == (why is not None), (first, one, second, two, why)
        assert why is None or re.search(reason, why), why


def test_a_forbidden_row_has_a_reason(checker):
    row = {"layout": Layout(pipeline=2), **PLAIN}
    assert checker.rejection_of(row) == ""
    assert "virtual stages need more than 2 pipeline stages" in checker.rejection_of(row | {"virtual_stages": 2})
