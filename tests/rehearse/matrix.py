"""The matrix: every layout and option that is compared with one process, and the rejected ones with the reason.

Its rows are all degrees of up to 8 ranks at every sharding stage, 16 ranks with all four degrees above one, and the
covering array of options (`covering.py`). `make parity` runs all rows; `make test` runs `FAST`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.case import Case
from tests.rehearse.covering import Pair, covering_array
from tests.rehearse.options import RowChecker, case_of, name_of
from tests.rehearse.spaces import PLAIN, PRETRAINING, Row

RANKS = 8


@dataclass(frozen=True)
class Matrix:
    """Rows by name, in the order in which they are run.

    Attributes:
        rows: Rows by name.
        rejected: Name of a layout that the rules forbid -> the reason.
        forbidden: Pair of values that no row has -> the reason.
    """

    rows: dict[str, Row]
    rejected: dict[str, str]
    forbidden: dict[Pair, str]

    def __or__(self, other: Matrix) -> Matrix:
        return Matrix(self.rows | other.rows, self.rejected | other.rejected, self.forbidden | other.forbidden)

    def case(self, name: str, folder: Path) -> Case:
        return case_of(folder, self.rows[name], name)


def build_matrix(checker: RowChecker) -> Matrix:
    """Return all rows of pretraining; `finetune_matrix.py` has those of fine-tuning."""
    rows: dict[str, Row] = {}
    rejected: dict[str, str] = {}
    for row in [*FAST, *degree_rows(), *rows_of_16_ranks()]:
        why = checker.rejection_of(row)
        if why:
            rejected[name_of(row)] = why
        else:
            rows[name_of(row)] = row
    array = covering_array(PRETRAINING, checker)
    rows |= {name_of(row): row for row in array.rows}
    return Matrix(rows, rejected, array.forbidden)


def degree_rows(ranks: int = RANKS) -> list[Row]:
    """Return a row for every (data, sharding, tensor, pipeline) with a product of at most `ranks`, at each sharding stage."""
    layouts = [
        Layout(*degrees, sharding_stage=stage)
        for degrees in product(range(1, ranks + 1), repeat=4)
        if prod(degrees) <= ranks
        for stage in ((1, 2, 3) if degrees[1] > 1 else (0,))
    ]
    return [plain_row(layout) for layout in sorted(layouts, key=lambda layout: layout.world_size)]


def rows_of_16_ranks() -> list[Row]:
    return [plain_row(Layout(2, 2, 2, 2, sharding_stage=stage)) for stage in (1, 2)]


def plain_row(layout: Layout) -> Row:
    """Return a row with a global batch of 8, or a little more if the data ranks do not divide 8: layouts share references."""
    micro_batches = {1: 8, 2: 4, 3: 4, 4: 2, 8: 1}.get(layout.data_world_size, 2)
    return {"layout": layout, **PLAIN, "micro_batches": micro_batches}


def _row(layout: Layout, **options: Any) -> Row:
    return {"layout": layout, **PLAIN, **options}


# Every pair of data, sharding, tensor and pipeline; stages 1, 2 and 3; every family; the options with most faults so far.
FAST: list[Row] = [
    _row(
        Layout(data=2, tensor=2),
        family="chatglm_v2",
        micro_batches=2,
        recompute="core_attn",
        key_value_heads=2,
        labels="some ignored",
    ),
    _row(
        Layout(data=2, sharding=2, sharding_stage=2), micro_batches=2, micro_batch_size=2, clipping=0.0, fused="qkv ffn"
    ),
    _row(Layout(data=2, pipeline=2), micro_batches=1, tied=True, layers="do not divide", labels="some ignored"),
    _row(
        Layout(sharding=3, sharding_stage=1),
        family="bloom",
        micro_batches=4,
        vocabulary=121,
        weight_decay=0.0,
        evaluation="even",
    ),
    _row(
        Layout(sharding=2, sharding_stage=2, tensor=2),
        sequence_parallel="fused",
        micro_batches=4,
        key_value_heads=1,
        vocabulary=121,
    ),
    _row(
        Layout(sharding=2, sharding_stage=2, pipeline=2),
        micro_batches=4,
        tied=True,
        recompute="full",
        labels="some ignored",
        topo_order="sharding_first",
        release_grads=True,
    ),
    _row(Layout(sharding=2, sharding_stage=3, tensor=2), family="bloom", micro_batches=2, labels="some ignored"),
    _row(Layout(sharding=2, sharding_stage=3), micro_batches=4, tied=True, recompute="full_attn", release_grads=True),
    _row(
        Layout(tensor=2, pipeline=2),
        family="chatglm_v2",
        sequence_parallel="on",
        micro_batches=4,
        vocabulary=121,
        recompute="full",
        pipeline_switches="enable_delay_scale_loss",
    ),
    _row(
        Layout(pipeline=3),
        virtual_stages="2 overlapped",
        tied=True,
        fused="qkv",
        pipeline_switches="disable_batch_p2p_comm",
    ),
    _row(Layout(tensor=3), micro_batches=4, key_value_heads=2, tied=True),
    _row(Layout(tensor=2, pipeline=2, sharding=2, sharding_stage=2), micro_batches=4, key_value_heads=1, tied=True),
]
