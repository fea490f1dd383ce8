"""The matrix of fine-tuning: every model x {full, LoRA, prefix} in each kind of layout, and a covering array.

Samples are instructions of unequal length, so the numbers of labels differ between micro-batches, ranks and steps.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from paddle_llm.config.layout import Layout
from tests.rehearse.covering import covering_array
from tests.rehearse.matrix import Matrix
from tests.rehearse.options import RowChecker, name_of
from tests.rehearse.spaces import FINETUNING, Row

TP = Layout(tensor=2)
SP = Layout(tensor=2, sequence_parallel=True)
STAGE2 = Layout(sharding=2, sharding_stage=2)
PP = Layout(pipeline=2)


def build_finetune_matrix(checker: RowChecker) -> Matrix:
    """Return all rows of fine-tuning."""
    rows: dict[str, Row] = {}
    rejected: dict[str, str] = {}
    for row in [*FINETUNE_FAST, *model_rows(), *more_rows()]:
        why = checker.rejection_of(row)
        if why:
            rejected[name_of(row)] = why
        else:
            rows[name_of(row)] = row
    array = covering_array(FINETUNING, checker)
    rows |= {name_of(row): row for row in array.rows}
    return Matrix(rows, rejected, array.forbidden)


def model_rows() -> list[Row]:
    """Return each model x method x layout; those of one model and method share their reference."""
    families = FINETUNING.options["family"]
    return [
        _row(layout, family=family, method=method, micro_batches=4 // layout.data_world_size, **_grouped_query(family))
        for family, method, layout in product(families, ("full", "LoRA", "prefix"), (TP, STAGE2, PP))
    ]


def _grouped_query(family: str) -> Row:
    return {"key_value_heads": 2} if family in ("llama", "chatglm_v2", "qwen2") else {}


def more_rows() -> list[Row]:
    """Return combinations of more than two options that neither `model_rows` nor the covering array has."""
    everything = Layout(sharding=2, tensor=2, pipeline=2, sharding_stage=2)
    return [
        _row(everything, method="LoRA", key_value_heads=1, samples="packed"),
        _row(everything, method="full", tied=True, label_smoothing=0.1, vocabulary=121),
        _row(Layout(data=2, sharding=2, sharding_stage=2), method="adapter", micro_batches=2),
        _row(Layout(sharding=2, sharding_stage=3), method="full", family="glm", micro_batches=2),
        _row(Layout(tensor=2, pipeline=2, sequence_parallel=True), method="LoRA", recompute="full"),
        _row(PP, method="LoRA", family="bloom", vocabulary=121, micro_batch_size=2, recompute="full"),
    ]


def _row(layout: Layout, **options: Any) -> Row:
    sequence = "on" if layout.sequence_parallel else ""
    return {**FINETUNING.plain, "layout": layout, "sequence_parallel": sequence, **options}


# Every family and method; every pair of data, tensor and pipeline; the options with most faults so far.
FINETUNE_FAST: list[Row] = [
    _row(TP, method="LoRA", key_value_heads=1, recompute="full"),
    _row(SP, method="DoRA", key_value_heads=1, vocabulary=121),
    _row(SP, family="chatglm_v2", method="LoRA with parts", key_value_heads=2, samples="packed"),
    _row(STAGE2, family="chatglm", method="full", micro_batches=2),
    _row(TP, family="glm", method="prefix", label_smoothing=0.1, vocabulary=121),
    _row(PP, family="bloom", method="LoRA", samples="packed"),
    _row(PP, method="freeze", key_value_heads=2, recompute="full"),
    _row(
        Layout(sharding=2, sharding_stage=2, tensor=2),
        family="qwen2",
        method="adapter",
        micro_batches=2,
        micro_batch_size=2,
        key_value_heads=2,
    ),
    _row(Layout(data=2), family="opt", method="AdaLoRA", micro_batches=2, recompute="full"),
    _row(TP, family="bloom", method="prompt", vocabulary=121),
    _row(
        Layout(tensor=2, pipeline=2),
        family="chatglm_v2",
        method="full",
        samples="packed",
        key_value_heads=2,
        label_smoothing=0.1,
        vocabulary=121,
    ),
]
