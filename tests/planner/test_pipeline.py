"""Pipeline schedules against the closed forms of their papers, an exhaustive search and a second simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.planner.pipeline.events import ChunkTimes, run_schedule, step_seconds
from paddle_llm.planner.pipeline.schedules import Operation, PipelineSchedule, build_schedule

SHAPES = [(2, 2), (2, 5), (3, 6), (4, 4), (4, 8), (8, 32), (5, 13)]


def uniform_seconds(name, ranks, micro_batches, chunks=1, **times):
    schedule = build_schedule(name, ranks, micro_batches, chunks)
    return run_schedule(schedule, ChunkTimes.uniform(ranks * chunks, **times))


def random_times(schedule, seed, overlap=True):
    random = np.random.default_rng(seed)
    size = schedule.positions
    weight = random.uniform(0.5, 2, size) * (schedule.name == "zero-bubble")
    return ChunkTimes(
        random.uniform(0.5, 2, size), random.uniform(1, 4, size), weight, random.uniform(0, 0.5, size - 1), overlap
    )


def clock_simulation(schedule, times):
    """The same step by a clock: at every tick each free rank starts its next operation if its input has arrived.

    Times are whole ticks. Nothing is shared with `run_schedule` but the orders.
    """
    final = schedule.positions - 1
    queues = [list(order) for order in schedule.orders]
    free, arrived, ends, tick = [0] * schedule.ranks, {}, [], 0
    while any(queues):
        for rank, queue in enumerate(queues):
            while queue and free[rank] <= tick:
                kind, _, chunk, number = queue[0]
                at = chunk * schedule.ranks + rank
                first = {"forward": 0, "backward": final, "weight": at}[kind]
                if at != first and arrived.get((kind, at, number), np.inf) > tick:
                    break
                duration = int(getattr(times, kind)[at])
                ends.append(tick + duration)
                free[rank] = tick + duration
                target = at + {"forward": 1, "backward": -1, "weight": 0}[kind]
                if kind != "weight" and 0 <= target <= final:
                    transfer = int(times.transfer[min(at, target)])
                    arrived[kind, target, number] = tick + duration + transfer
                    free[rank] += 0 if times.overlap else transfer
                queue.pop(0)
        tick += 1
    return max(ends)


@pytest.mark.parametrize(("ranks", "micro_batches"), SHAPES)
def test_the_bubble_of_1f1b_is_p_minus_1_of_m_plus_p_minus_1(ranks, micro_batches):
    timeline = uniform_seconds("1f1b", ranks, micro_batches, forward=1, backward=2)
    assert timeline.seconds == pytest.approx(3 * (micro_batches + ranks - 1))
    assert timeline.idle_share == pytest.approx((ranks - 1) / (micro_batches + ranks - 1))


@pytest.mark.parametrize("chunks", [2, 3, 5])
@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (3, 6), (4, 8), (8, 32), (3, 3)])
def test_the_bubble_of_interleaving_is_p_minus_1_of_v_m(ranks, micro_batches, chunks):
    timeline = uniform_seconds("interleaved", ranks, micro_batches, chunks, forward=1, backward=2)
    ideal = 3 * micro_batches * chunks
    assert timeline.seconds / ideal - 1 == pytest.approx((ranks - 1) / (chunks * micro_batches))


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (3, 6), (4, 8), (8, 32), (5, 13)])
def test_zero_bubble_waits_for_p_minus_1_times_f_plus_b_minus_w(ranks, micro_batches):
    for forward, backward, weight in ((1, 1, 1), (2, 2, 1), (3, 3, 2)):
        timeline = uniform_seconds(
            "zero-bubble", ranks, micro_batches, forward=forward, backward=backward, weight=weight
        )
        busy = micro_batches * (forward + backward + weight)
        assert timeline.seconds - busy == pytest.approx((ranks - 1) * (forward + backward - weight))


@pytest.mark.parametrize("name", ["1f1b", "zero-bubble"])
def test_zero_bubble_keeps_no_more_activations_than_the_first_rank_of_1f1b(name):
    for ranks, micro_batches in SHAPES:
        kept = [build_schedule(name, ranks, micro_batches).in_flight(rank) for rank in range(ranks)]
        assert max(kept) == min(ranks, micro_batches)
        if name == "1f1b":
            assert kept == [min(ranks - rank, micro_batches) for rank in range(ranks)]


def test_interleaving_keeps_the_activations_that_megatron_computes():
    # cost of the first rank: p * v + p - 1 chunks, that is 1 + (p - 1) / (p v) times p micro-batches of v chunks
    assert build_schedule("interleaved", 4, 8, 2).in_flight(0) == 4 * 2 + 4 - 1


def test_the_interleaved_order_is_that_of_megatron():
    order = build_schedule("interleaved", 2, 4, 2).orders[0]
    text = " ".join(f"{kind[0]}{chunk}{number}" for kind, _, chunk, number in order)
    assert text == "f00 f01 f10 f11 f02 b10 f03 b11 f12 b00 f13 b01 b12 b13 b02 b03"


def test_a_remainder_is_added_to_the_first_group_as_in_paddle():
    order = build_schedule("interleaved", 3, 7, 2).orders[2]
    forward = [(chunk, number) for kind, _, chunk, number in order if kind == "forward"]
    assert forward[:8] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert forward[8:] == [(0, 4), (0, 5), (0, 6), (1, 4), (1, 5), (1, 6)]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("name", "chunks"), [("1f1b", 1), ("interleaved", 2), ("zero-bubble", 1)])
def test_unequal_stages_agree_with_a_simulation_by_clock(name, chunks, overlap):
    random = np.random.default_rng(5)
    for ranks, micro_batches in ((2, 3), (3, 6), (4, 9)):
        schedule = build_schedule(name, ranks, micro_batches, chunks)
        size = schedule.positions
        parts = [random.integers(1, 9, size).astype(float) for _ in range(3)]
        times = ChunkTimes(*parts, random.integers(0, 4, size - 1).astype(float), overlap)
        assert run_schedule(schedule, times).seconds == clock_simulation(schedule, times)


def orders_of_one_rank(rank, micro_batches, kinds, kept):
    """Every order of a rank's operations that keeps the activations of at most `kept` micro-batches."""

    def extend(counts, order):
        if all(count == micro_batches for count in counts):
            yield tuple(order)
            return
        for number, kind in enumerate(kinds):
            limit = micro_batches if number == 0 else counts[number - 1]
            if counts[number] == limit or (number == 0 and counts[0] - counts[-1] >= kept):
                continue
            following = [*counts[:number], counts[number] + 1, *counts[number + 1 :]]
            yield from extend(following, [*order, Operation(kind, rank, 0, counts[number])])

    yield from extend([0] * len(kinds), [])


@pytest.mark.parametrize(("name", "kinds"), [("1f1b", 2), ("zero-bubble", 3)])
def test_no_order_with_the_same_memory_is_faster(name, kinds):
    names = ("forward", "backward", "weight")[:kinds]
    for micro_batches in (2, 3):
        times = ChunkTimes.uniform(2, 1.0, 1.0 if kinds == 3 else 2.0, 1.0 if kinds == 3 else 0.0)
        kept = [build_schedule("zero-bubble", 2, micro_batches).in_flight(rank) for rank in range(2)]
        choices = [list(orders_of_one_rank(rank, micro_batches, names, kept[rank])) for rank in range(2)]
        fastest = np.inf
        for orders in product(*choices):
            try:
                timeline = run_schedule(PipelineSchedule(name, 2, micro_batches, 1, orders), times)
            except ValueError:  # the two orders wait for each other
                continue
            fastest = min(fastest, float(timeline.seconds))
        assert len(choices[0]) > 1
        assert run_schedule(build_schedule(name, 2, micro_batches), times).seconds == fastest


def test_a_transfer_delays_the_next_rank_and_without_overlap_also_the_sender():
    quick = uniform_seconds("1f1b", 2, 1, forward=1, backward=2, transfer=0.5)
    assert quick.seconds == 1 + 0.5 + 3 + 0.5 + 2
    times = ChunkTimes.uniform(2, 1.0, 2.0, transfer=0.5)
    blocking = ChunkTimes(times.forward, times.backward, times.weight, times.transfer, overlap=False)
    schedule = build_schedule("1f1b", 2, 4)
    assert run_schedule(schedule, blocking).seconds > run_schedule(schedule, times).seconds


def test_a_slow_stage_sets_the_pace():
    times = ChunkTimes(np.array([1.0, 3.0, 1.0]), np.array([2.0, 6.0, 2.0]), np.zeros(3), np.zeros(2))
    seconds = run_schedule(build_schedule("1f1b", 3, 20), times).seconds
    assert seconds == 1 + 20 * 9 + 2  # only the first forward and the last backward pass of rank 0 are outside


def test_samples_are_simulated_together_and_equal_single_ones():
    schedule = build_schedule("interleaved", 3, 6, 2)
    single = [random_times(schedule, seed) for seed in range(4)]
    together = ChunkTimes(
        *(np.stack([getattr(one, name) for one in single], 1) for name in ("forward", "backward", "weight", "transfer"))
    )
    expected = [float(run_schedule(schedule, one).seconds) for one in single]
    assert run_schedule(schedule, together).seconds.tolist() == expected


@pytest.mark.parametrize(("name", "chunks"), [("1f1b", 1), ("interleaved", 3), ("zero-bubble", 1)])
def test_a_long_step_is_extrapolated_from_short_ones(name, chunks):
    for seed, (ranks, micro_batches) in enumerate(((2, 31), (4, 67), (3, 60))):
        schedule = build_schedule(name, ranks, micro_batches, chunks)
        times = random_times(schedule, seed)
        full = run_schedule(schedule, times).seconds
        assert step_seconds(name, ranks, micro_batches, chunks, times) == pytest.approx(full, rel=1e-6)


def test_one_rank_computes_without_waiting():
    assert uniform_seconds("1f1b", 1, 4, forward=1, backward=2).seconds == 12
    assert uniform_seconds("interleaved", 1, 4, 2, forward=1, backward=2, transfer=9.0).seconds == 24


def test_orders_that_wait_for_each_other_are_an_error():
    def alternate(rank, *numbers):
        return tuple(Operation(kind, rank, 0, number) for number in numbers for kind in ("forward", "backward"))

    # Rank 0 needs micro-batch 0 back before it sends micro-batch 1, for which rank 1 waits first.
    schedule = PipelineSchedule("1f1b", 2, 2, 1, (alternate(0, 0, 1), alternate(1, 1, 0)))
    with pytest.raises(ValueError, match="wait for each other"):
        run_schedule(schedule, ChunkTimes.uniform(2, 1, 1))


def test_impossible_numbers_are_refused():
    with pytest.raises(UserError, match="micro_batches = 3 is less than the 4 pipeline ranks"):
        build_schedule("interleaved", 4, 3, 2)
    with pytest.raises(UserError, match="virtual_stages = 2 with the schedule 1f1b"):
        build_schedule("1f1b", 4, 8, 2)
