"""Operations of a network on a tape: what each allocates, and what it keeps for its backward pass (Paddle 3.3.1)."""

from __future__ import annotations

from collections.abc import Callable

from paddle_llm.planner.memory.tape import Block, Leaf, Tape, Value, Weight


def linear(tape: Tape, x: Value, weight: Weight, output: int, bias: Weight | None = None) -> Value:
    """Return x W; keeps x. The bias is added in the same operation.

    Args:
        tape: Tape.
        x: Input.
        weight: Matrix.
        output: Bytes of the output.
        bias: Bias.
    """
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return tape.apply(inputs, tape.new(output), keeps=[x])


def add(tape: Tape, left: Value, right: Value) -> Value:
    """Return a sum; keeps nothing. The left input gets the gradient itself, the right one a copy."""

    def backward(gradient: Block, _: tuple[Block, ...]) -> list[Block | None]:
        return [gradient, tape.new(gradient.size)]

    return tape.apply([left, right], tape.new(left.size), backward=backward)


def fused_norm(tape: Tape, x: Value, weight: Weight, rows: int) -> Value:
    """Return an RMSNorm of one kernel; keeps its input and one number per row."""
    scales = tape.new(4 * rows)
    return tape.apply([x, weight], tape.new(x.size), keeps=[x, scales])


def copy(tape: Tape, x: Value, size: int | None = None) -> Value:
    """Return a copy, of another size if elements are repeated."""
    return tape.apply([x], tape.new(x.size if size is None else size))


def recompute(tape: Tape, function: Callable[..., Value], *inputs: Value) -> Value:
    """Return `function(*inputs)`; keeps the inputs only and computes the rest again in the backward pass."""
    before, tape.grads_enabled = tape.grads_enabled, False
    output = function(*(Value(one.block) for one in inputs)).block
    tape.grads_enabled = before

    def backward(gradient: Block, kept: tuple[Block, ...]) -> list[Block | None]:
        leaves = [Leaf(block) for block in kept]
        tape.backward(function(*leaves), gradient)
        return [leaf.take() for leaf in leaves]

    return tape.apply(inputs, output, keeps=inputs, backward=backward)
