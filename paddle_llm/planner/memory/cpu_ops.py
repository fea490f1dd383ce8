"""Operations of PaddleNLP's decoders on a CPU, with those of `models/patches/shared/cpu_*.py`, in fp32."""

from __future__ import annotations

from paddle_llm.planner.memory.sizes import Sizes
from paddle_llm.planner.memory.tape import Block, Tape, Value, Weight

_MIN_BLOCK, _MAX_BLOCKS = 128, 8  # cpu_attention.py


def blocks(length: int) -> list[tuple[int, int]]:
    """Return the blocks of queries, each with the keys up to its end."""
    size = max(_MIN_BLOCK, -(-length // _MAX_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def causal_attention(tape: Tape, q: Value, k: Value, v: Value, n: Sizes) -> Value:
    """`CausalAttention`: keeps copies of queries, keys and values, and the probabilities below the diagonal."""
    scaled = tape.new(n.queries)
    q_heads = _transposed(tape, scaled)
    del scaled
    k_heads, v_heads = _transposed(tape, k.block), _transposed(tape, v.block)
    probabilities, outputs = [], []
    for start, stop in blocks(n.length):
        part = stop - start
        sliced_q, sliced_k = tape.new(n.queries * part // n.length), tape.new(n.queries * stop // n.length)
        scores = tape.new(n.scores(part, stop))
        del sliced_q, sliced_k
        bias = tape.new(part * stop * n.element)
        bias = tape.new(part * stop * n.element)
        del bias
        probabilities.append(scores)
        sliced_v = tape.new(n.queries * stop // n.length)
        outputs.append(tape.new(n.queries * part // n.length))
        del sliced_v, scores
    joined = tape.new(n.queries)
    output = _transposed(tape, joined)

    def backward(gradient: Block, kept: tuple[Block, ...]) -> list[Block | None]:
        _grad = _transposed(tape, gradient)
        grads_q: list[Block] = []
        grads_k: list[Block] = []
        grads_v: list[Block] = []
        for index, (start, stop) in enumerate(blocks(n.length)):
            part = stop - start
            of_queries, of_keys = n.queries * part // n.length, n.queries * stop // n.length
            sliced = tape.new(of_queries)
            _grad_weight = tape.new(n.scores(part, stop))
            _grad_scores = tape.new(n.scores(part, stop))
            grads_q.append(tape.new(of_queries))
            _grad_k, _grad_v = tape.new(of_keys), tape.new(of_keys)
            grads_k.append(tape.new(of_queries))
            grads_v.append(tape.new(of_queries))
            del sliced, index
        joined_q = tape.new(n.queries)
        joined_q = _transposed(tape, joined_q)
        grad_q = tape.new(n.queries)
        del joined_q
        parts = []
        for _ in ("keys", "values"):
            joined = tape.new(n.queries)
            parts.append(_transposed(tape, joined))
            del joined
        return [grad_q, *parts]

    return tape.apply([q, k, v], output, keeps=[q_heads, k_heads, v_heads, *probabilities], backward=backward)


def _transposed(tape: Tape, block: Block) -> Block:
    """Return a copy with heads and positions exchanged: parts are copied, joined, and dropped."""
    parts = tape.new(block.size)
    joined = tape.new(block.size)
    del parts
    return joined


def rotate(tape: Tape, x: Value, tables: tuple[Block, ...]) -> Value:
    """`Rotate`: keeps the tables of angles."""
    first, swapped = tape.new(x.size), tape.new(x.size)
    second = tape.new(x.size)
    del swapped
    output = tape.new(x.size)
    del first, second

    def backward(gradient: Block, _: tuple[Block, ...]) -> list[Block | None]:
        first, product = tape.new(gradient.size), tape.new(gradient.size)
        swapped = tape.new(gradient.size)
        del product
        result = tape.new(gradient.size)
        del first, swapped
        return [result]

    return tape.apply([x], output, keeps=tables, backward=backward)


def activation(tape: Tape, first: Value, second: Value, keeps: int) -> Value:
    """Return the activation of the feed-forward network; keeps `keeps` tensors of its width beside the result.

    Args:
        tape: Tape.
        first: Gate projection, or the only input.
        second: Up projection, or the only input.
        keeps: Number of tensors. If it is 2 these are the inputs; if it is more, one of them is the second input.
    """
    size = first.size
    kept: list[Block | Value] = [] if keeps == 2 else [tape.new(size) for _ in range(max(keeps - 1, 0))]
    kept += [first, second] if keeps == 2 else [second] if keeps else []

    def backward(gradient: Block, _: tuple[Block, ...]) -> list[Block | None]:
        total, product = tape.new(size), tape.new(size)
        slope = tape.new(size)
        del total, product
        product = tape.new(size)
        grad_gate = tape.new(size)
        del product, slope
        return [grad_gate, tape.new(size)]

    return tape.apply([first, second], tape.new(size), keeps=kept, backward=backward)


def rotate_plainly(tape: Tape, x: Value, angles: Block, share: float) -> Value:
    """PaddleNLP's rotary positions: keep both factors of each product, for the share of the head that is rotated."""
    part = int(x.size * share)
    half, states = tape.new(part), tape.new(part)
    output = tape.new(x.size)
    return tape.apply([x], output, keeps=[half, states, angles])


def angles(tape: Tape, size: int, n: Sizes) -> tuple[Block, Block]:
    """Return the tables of cosines and sines of one row, repeated for all heads of a tensor of `size` bytes."""
    return tape.new(size // n.rows), tape.new(size // n.rows)


def rms_norm(tape: Tape, x: Value, weight: Weight, *, keeps_input: bool) -> Value:
    """RMSNorm without a fused kernel: keeps the normal values, and its input or a tensor of scales."""
    squares = tape.new(x.size)
    scale: Block | Value = x if keeps_input else tape.new(x.size)
    del squares
    normal = tape.new(x.size)
    return tape.apply([x, weight], tape.new(x.size), keeps=[normal, scale])


def cross_entropy(tape: Tape, logits: Value, n: Sizes, *, parallel: bool, padded: bool) -> Value:
    """`CausalLMLoss`: keeps the softmax, which becomes the gradient of the logits."""
    size = logits.size
    if padded:
        logits = tape.apply([logits], tape.new(size))
    if not parallel:
        softmax = tape.new(size)
        return tape.apply([logits], tape.new(4 * n.tokens), keeps=[softmax], backward=lambda _, kept: [kept[0]])
    shifted, exponentials = tape.new(size), tape.new(size)
    softmax = tape.new(size)
    del shifted, exponentials

    def backward(_: Block, kept: tuple[Block, ...]) -> list[Block | None]:
        scaled = tape.new(size)
        gradient = tape.new(size)
        del scaled
        return [gradient]

    return tape.apply([logits], tape.new(4 * n.tokens), keeps=[softmax], backward=backward)
