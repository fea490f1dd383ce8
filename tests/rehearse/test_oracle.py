"""The oracle: what it compares, that it covers everything, and how it reports a difference."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.models.weights.shards import Shard
from paddle_llm.rehearse.compare import (
    FIRST_STEP_LIMITS,
    QUANTITIES,
    compare,
    exact_zeros,
    missing_values,
    rounding_floor,
    worst_of,
)
from paddle_llm.rehearse.oracle import prove, reference_key, reference_of
from paddle_llm.rehearse.record import TENSORS, Part, RankRecord, Step
from tests.rehearse.cases import make_case, random_samples


def test_a_layout_is_compared_in_every_quantity(tmp_path):
    case = make_case(tmp_path, Layout(tensor=2, pipeline=2), model={"tie_word_embeddings": True}, max_grad_norm=0.5)
    verdict = prove(case)
    assert verdict.passed and not verdict.failures
    assert verdict.worst.keys() == set(QUANTITIES)
    assert all(0 <= found.value <= found.limit for found in verdict.worst.values())
    # The rounding error is not zero: another order of sums differs, and so does a layout.
    assert verdict.worst["gradient"].value > 0 and max(verdict.floor.values()) > 0
    # 4 ranks x 3 steps x 3 scalars, and many tensors.
    assert verdict.compared > 4 * 3 * 3 + 4 * 3 * 30


def test_weight_decay_excludes_the_same_weights_in_a_pipeline(tmp_path):
    """PaddleNLP selects by names, and ChatGLM2's final norm has another name in a pipeline."""
    verdict = prove(make_case(tmp_path, Layout(pipeline=2), family="chatglm_v2", weight_decay=0.5))
    assert verdict.passed, verdict.failures[0]


def test_a_reference_is_shared_by_layouts_of_one_training(tmp_path):
    cases = [make_case(tmp_path, layout) for layout in (Layout(data=2), Layout(tensor=2, pipeline=2))]
    assert len({reference_key(case) for case in cases}) == 1
    others = [
        make_case(tmp_path, Layout(data=2), weight_decay=0.0),
        make_case(tmp_path, Layout(data=2), global_batch=4),
        make_case(tmp_path, Layout(data=2), model={"num_hidden_layers": 2}),
        make_case(tmp_path, Layout(data=2), ignored_labels=True),  # the same inputs
        replace(cases[0], evaluation=cases[0].evaluation[::-1]),
    ]
    assert len({reference_key(case) for case in [cases[0], *others]}) == 6


def test_the_reference_runs_without_options_that_save_memory(tmp_path):
    """Otherwise a wrong recomputation would be equally wrong in both."""
    case = make_case(tmp_path, Layout(tensor=2), recompute=True, recompute_granularity="core_attn", release_grads=True)
    for one in (case.in_one_process(), case.with_other_micro_batches()):
        assert not one.config.recompute and not one.config.release_grads
    assert case.config.recompute


def test_the_second_reference_uses_another_order_of_sums(tmp_path):
    case = make_case(tmp_path, Layout(data=2), global_batch=8)
    alone, other = case.in_one_process().config, case.with_other_micro_batches().config
    assert (alone.per_device_train_batch_size, alone.gradient_accumulation_steps) == (1, 8)
    assert (other.per_device_train_batch_size, other.gradient_accumulation_steps) == (2, 4)
    assert make_case(tmp_path, Layout(), global_batch=1).with_other_micro_batches() is None


@pytest.mark.parametrize("layout", [Layout(data=2), Layout(sharding=2, sharding_stage=2, pipeline=2)], ids=str)
def test_the_loss_is_the_mean_over_the_labels_of_the_global_batch(layout, tmp_path):
    """Samples with 16, 15, 14, ... 0 labels: neither ranks nor micro-batches may be averaged."""
    case = make_case(tmp_path, layout, model={"num_hidden_layers": 2})
    for index, sample in enumerate([*case.train, *case.evaluation]):
        sample["labels"][: index % 17] = -100
    reference = reference_of(case)
    # The second reference has other micro-batches: if means were averaged, it would be another training.
    assert max(reference.floor.values()) < 2e-6
    verdict = prove(case, reference)
    assert verdict.passed, verdict.failures[0]


# --- the comparison, with records written by hand ---------------------------------------------------------------------


def record(rank: int, place: tuple[int, int, int, int], shard: Shard, full: np.ndarray) -> RankRecord:
    tensors = {quantity: {"w": Part(shard, shard.take(full).copy())} for quantity in TENSORS}
    step = Step({"loss": 2.0, "grad_norm": 3.0}, tensors)
    return RankRecord(rank, place, {"family": "llama", "heads": 2, "head_size": 2}, {1: step})


FULL = np.arange(1.0, 13.0, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def records() -> tuple[RankRecord, list[RankRecord]]:
    """One process, and tp2 x dp2 with the vocabulary axis padded from 3 to 4."""
    reference = record(0, (0, 0, 0, 0), Shard((3, 4), 0, ((0, 3),)), FULL)
    padded = np.pad(FULL, [(0, 1), (0, 0)])
    ranks = [
        record(2 * data + tensor, (data, 0, tensor, 0), Shard((4, 4), 0, ((2 * tensor, 2 * tensor + 2),)), padded)
        for data in (0, 1)
        for tensor in (0, 1)
    ]
    return reference, ranks


def failures(reference: RankRecord, ranks: list[RankRecord]) -> list:
    return [d for d in compare(reference, ranks, {}, FIRST_STEP_LIMITS) if not d.passed]


def test_equal_records_have_no_difference(records):
    reference, ranks = records
    found = compare(reference, ranks, {}, FIRST_STEP_LIMITS)
    assert found and all(difference.value == 0 for difference in found)


def change_a_scalar(ranks):
    ranks[3].steps[1].scalars["grad_norm"] *= 1.5


def drop_a_scalar(ranks):
    del ranks[1].steps[1].scalars["loss"]


def change_one_replica(ranks):
    ranks[2].steps[1].tensors["weight"]["w"].values[0, 0] += 0.1


def fill_the_padding(ranks):
    ranks[1].steps[1].tensors["gradient"]["w"].values[1] = 0.1


def lose_a_tensor(ranks):
    for rank in ranks[2:]:
        del rank.steps[1].tensors["moment1"]["w"]


def lose_a_part(ranks):
    del ranks[1].steps[1].tensors["moment1"]["w"]


def lose_a_step(ranks):
    del ranks[0].steps[1]


def not_a_number(ranks):
    ranks[0].steps[1].tensors["moment2"]["w"].values[0, 0] = math.nan


@pytest.mark.parametrize(
    ("damage", "quantity", "rank"),
    [
        (change_a_scalar, "grad_norm", 3),
        (drop_a_scalar, "loss", 1),
        (change_one_replica, "weight", 2),
        (fill_the_padding, "gradient", 0),
        (lose_a_tensor, "moment1", 2),
        (lose_a_part, "moment1", 0),
        (lose_a_step, "loss", 0),
        (not_a_number, "moment2", 0),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_record_is_found_and_named(records, damage, quantity, rank):
    reference, ranks = copy.deepcopy(records)
    damage(ranks)
    found = failures(reference, ranks)
    assert (quantity, rank) in {(difference.quantity, difference.rank) for difference in found}
    assert quantity in str(worst_of(found)[quantity])
    if damage is not lose_a_step:
        assert {difference.quantity for difference in found} == {quantity}


def test_later_steps_may_differ_by_five_times_the_floor(records):
    reference, ranks = records
    for one in (reference, *ranks):
        one.steps = {4: one.steps[1]}
    ranks[0].steps[4].scalars["loss"] *= 1 + 4e-6
    assert failures(reference, ranks)
    assert not [d for d in compare(reference, ranks, {("loss", 4): 1e-6}, FIRST_STEP_LIMITS) if not d.passed]


def test_a_zero_in_only_one_reference_is_not_a_floor(records):
    """Otherwise one such tensor would make the limit of all others infinite."""
    reference, ranks = records
    for one in (reference, *ranks):
        one.steps = {2: one.steps[1]}
    zero, almost = copy.deepcopy(reference), copy.deepcopy(reference)
    for quantity in TENSORS:
        zero.steps[2].tensors[quantity]["w"].values[:] = 0.0
        almost.steps[2].tensors[quantity]["w"].values[:] = 1e-12
    for one, other in ((zero, almost), (almost, zero)):
        floor = rounding_floor(one, other)
        assert all(math.isfinite(value) for value in floor.values())
    ranks[0].steps[2].tensors["weight"]["w"].values[0] *= 1.5
    floor = rounding_floor(zero, almost)
    assert [d.quantity for d in compare(reference, ranks, floor, FIRST_STEP_LIMITS) if not d.passed] == ["weight"]


def test_values_missing_from_every_record_are_reported(records):
    """Otherwise they would be compared with nothing, and pass."""
    reference, _ = records
    assert missing_values(reference, 1, evaluated=False) == []
    reference.steps[1].tensors["gradient"].clear()
    del reference.steps[1].scalars["grad_norm"]
    assert missing_values(reference, 1, evaluated=True) == [
        f"{q} at step 1" for q in ("grad_norm", "eval_loss", "gradient")
    ]
    assert "loss at step 2" in missing_values(reference, 2, evaluated=False)


def test_zeros_are_compared_with_zeros():
    """The unit of OPT's key biases are its value biases, which may be zero."""
    name = "opt.decoder.layers.0.self_attn.{}_proj.bias"

    def biases(key: float) -> RankRecord:
        whole = Shard((4,), 0, ((0, 4),))
        parts = {name.format("k"): Part(whole, np.full(4, key)), name.format("v"): Part(whole, np.zeros(4))}
        model = {"family": "opt", "heads": 2, "head_size": 2}
        return RankRecord(0, (0, 0, 0, 0), model, {1: Step({}, {quantity: parts for quantity in TENSORS})})

    assert not failures(biases(0.0), [biases(0.0)])
    assert {d.tensor for d in failures(biases(0.0), [biases(7.0)])} == {name.format("k")}


def test_the_floor_is_limited_to_rounding_errors(records):
    """Two runs in one process that differ by half are not the same training."""
    reference, ranks = records
    differing = compare(reference, ranks, {("gradient", 1): 0.5}, FIRST_STEP_LIMITS)
    (unlike,) = [d for d in differing if not d.passed]
    assert unlike.quantity == "gradient" and "one process" in str(unlike)
    for one in (reference, *ranks):
        one.steps = {2: one.steps[1]}
    ranks[0].steps[2].scalars["loss"] *= 1 + 2e-4
    assert [d.quantity for d in compare(reference, ranks, {("loss", 2): 0.5}, FIRST_STEP_LIMITS) if not d.passed] == [
        "loss"
    ]


def test_a_weight_that_nearly_cancels_has_the_rounding_error_of_its_steps(records):
    """Its size before the step is the unit. This does not apply to gradients or to larger differences."""
    reference, ranks = records
    for one in (reference, *ranks):
        one.steps[2] = copy.deepcopy(one.steps[1])
        for quantity in ("weight", "gradient"):
            one.steps[2].tensors[quantity]["w"].values[:] *= 1e-4
    for quantity in ("weight", "gradient"):
        ranks[0].steps[2].tensors[quantity]["w"].values[:] *= 1 + 1e-3
    assert {d.quantity for d in failures(reference, ranks)} == {"gradient"}
    ranks[0].steps[2].tensors["weight"]["w"].values[:] *= 2
    assert {d.quantity for d in failures(reference, ranks)} == {"gradient", "weight"}


def test_a_weight_missing_on_one_sharding_rank_is_found(records):
    reference, ranks = records
    for rank in ranks:
        rank.position = (0, rank.position[0], *rank.position[2:])
    for rank in ranks[2:]:
        del rank.steps[1].tensors["moment1"]["w"]  # its owner has it
    assert not failures(reference, ranks)
    for rank in ranks[2:]:
        del rank.steps[1].tensors["weight"]["w"]
    assert {(d.quantity, d.rank) for d in failures(reference, ranks)} == {("weight", 2)}


def test_blooms_key_bias_is_compared_absolutely(records):
    """Its gradient consists of rounding errors, so a relative difference has no meaning."""
    model = {"family": "bloom", "heads": 2, "head_size": 2}
    name = "bloom.h.0.self_attention.query_key_value.bias"
    mask = exact_zeros(model, name, (12,))
    assert mask.tolist() == [False, False, True, True, False, False] * 2
    assert exact_zeros(model, "bloom.h.0.mlp.dense_4h_to_h.bias", (4,)) is None

    def bias(keys: float, rest: float) -> RankRecord:
        values = np.where(mask, keys, rest).astype(np.float32)
        parts = {name: Part(Shard((12,), 0, ((0, 12),)), values)}
        return RankRecord(0, (0, 0, 0, 0), model, {1: Step({}, {quantity: parts for quantity in TENSORS})})

    assert not failures(bias(1e-9, 1.0), [bias(-3e-9, 1.0)])
    assert {d.absolute for d in failures(bias(1e-9, 1.0), [bias(1e-3, 1.0)])} == {True}
    assert {d.absolute for d in failures(bias(1e-9, 1.0), [bias(1e-9, 1.1)])} == {False}


def test_random_samples_depend_only_on_the_seed():
    first, again = random_samples(2, 8, 50), random_samples(2, 8, 50)
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    assert np.array_equal(first[0]["input_ids"][1:], first[0]["labels"][:-1])


def test_the_floor_of_a_reference_has_every_quantity(tmp_path):
    reference = reference_of(make_case(tmp_path, Layout(), max_steps=2))
    assert {key for key, _ in reference.floor} == set(QUANTITIES)
    assert {step for _, step in reference.floor} == {1, 2}
    assert max(reference.floor.values()) < 1e-5
