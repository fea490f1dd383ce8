"""Lifetimes of memory on a tape, against counts by hand."""

from __future__ import annotations

from paddle_llm.planner.memory.ops import add, fused_norm, linear, recompute
from paddle_llm.planner.memory.tape import Leaf, Tape, Value, Weight

SIZE = 1000


def start(tape: Tape) -> Leaf:
    return Leaf(tape.new(SIZE))


def test_an_operation_keeps_its_input_until_its_backward_pass() -> None:
    tape = Tape()
    x = start(tape)
    y = linear(tape, x, Weight(tape, 300, True), 2000)
    z = linear(tape, y, Weight(tape, 50, True), 500)
    del y
    assert tape.meter.now == SIZE + 2000 + 500, "the second product keeps its input"
    tape.meter.reset()
    tape.backward(z, tape.new(500))
    # The gradient of y beside both gradients of the second product.
    assert tape.meter.peak == SIZE + 2000 + 500 + 500 + 2000 + 50
    assert tape.meter.now == SIZE + 500 + SIZE, "z, x, and the gradient of x"
    gradient = x.take()
    assert gradient is not None and gradient.size == SIZE


def test_gradients_of_weights_are_kept_or_dropped() -> None:
    for keeps in (True, False):
        tape = Tape(keeps_gradients=keeps)
        y = linear(tape, Value(tape.new(SIZE)), Weight(tape, 300, True), SIZE)
        tape.backward(y, tape.new(SIZE))
        assert tape.meter.now == SIZE + 300 * keeps, "y, and the gradient"


def test_nothing_is_kept_without_a_trained_weight() -> None:
    tape = Tape()
    x = Value(tape.new(SIZE))
    y = linear(tape, x, Weight(tape, 300, False), 2000)
    del x
    assert y.node is None and tape.meter.now == 2000
    frozen = linear(tape, start(tape), Weight(tape, 300, False), 2000)
    assert tape.meter.now == 2000 + SIZE + 2000, "Paddle keeps the input of a frozen matrix if the input has a gradient"
    del frozen


def test_a_residual_waits_for_both_gradients() -> None:
    tape = Tape()
    x = start(tape)
    states = fused_norm(tape, x, Weight(tape, 10, True), 5)
    y = add(tape, x, linear(tape, states, Weight(tape, 10, True), SIZE))
    del states
    assert tape.meter.now == SIZE + 20 + SIZE + SIZE, "x, 5 scales, the norm's output, y"
    tape.backward(y, tape.new(SIZE))
    assert tape.meter.now == 3 * SIZE, "x, y and the gradient of x"


def test_recompute_keeps_the_input_only() -> None:
    def part(x: Value) -> Value:
        inner = linear(tape, x, Weight(tape, 30, True), 5000)
        return linear(tape, inner, Weight(tape, 30, True), SIZE)

    tape = Tape()
    x = start(tape)
    y = recompute(tape, part, x)
    assert tape.meter.now == 2 * SIZE
    assert tape.meter.peak == SIZE + 5000 + SIZE
    tape.meter.reset()
    tape.backward(y, tape.new(SIZE))
    # x, y, its gradient; the inner states and, in the backward pass, their gradient and that of a weight.
    assert tape.meter.peak == 3 * SIZE + 5000 + 5000 + 30 + SIZE
    assert tape.meter.now == 3 * SIZE and x.take() is not None
