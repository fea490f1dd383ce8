"""Operations of PaddleNLP's decoders on a GPU (paddlenlp 3.0.0b4, Paddle 3.3.1)."""

from __future__ import annotations

from paddle_llm.planner.job import Kernels
from paddle_llm.planner.memory.sizes import Sizes
from paddle_llm.planner.memory.tape import Block, Tape, Value, Weight


def rms_norm(tape: Tape, x: Value, weight: Weight) -> Value:
    """`LlamaRMSNorm.forward` without a fused kernel: keeps fp32 states and the cast, normalized ones."""
    wide = x.size * 2 if x.size else 0
    states = tape.new(wide)
    squares = tape.new(wide)
    del squares
    normal = tape.new(wide)
    cast = tape.new(x.size)
    return tape.apply([x, weight], tape.new(x.size), keeps=[x, states, cast, normal])


def rotate(tape: Tape, x: Value, kernels: Kernels) -> Value:
    """Rotary positions: keep nothing of the size of the states."""
    if kernels.fused_rope:
        return tape.apply([x], tape.new(x.size))
    first, half = tape.new(x.size), tape.new(x.size)
    second = tape.new(x.size)
    del half
    output = tape.new(x.size)
    del first, second
    return tape.apply([x], output)


def attention(tape: Tape, q: Value, k: Value, v: Value, n: Sizes, kernels: Kernels) -> Value:
    """Flash attention keeps its inputs, its output and one number per query; plain attention the probabilities."""
    if kernels.flash_attention:
        output, sums = tape.new(n.queries), tape.new(4 * n.heads * n.tokens)
        return tape.apply([q, k, v], output, keeps=[q, k, v, output, sums])
    scores = n.scores(n.length, n.length)
    if n.groups != n.heads:
        k, v = (tape.apply([one], tape.new(n.queries)) for one in (k, v))
    scaled = tape.new(n.queries)
    raw = tape.new(scores)
    masked = tape.new(scores)
    del raw
    wide = tape.new(scores // n.element * 4)
    softmax = tape.new(scores // n.element * 4)
    del masked, wide
    probabilities = tape.new(scores) if n.element != 4 else softmax

    def backward(gradient: Block, _: tuple[Block, ...]) -> list[Block | None]:
        of_probabilities = tape.new(scores)
        of_softmax = tape.new(scores // n.element * 4)
        of_scores = tape.new(scores // n.element * 4)
        del of_probabilities, of_softmax
        gradients: list[Block | None] = [tape.new(n.queries) for _ in range(3)]
        del of_scores
        return gradients

    keeps: list[Block | Value] = [scaled, k, v, softmax, probabilities]
    return tape.apply([q, k, v], tape.new(n.queries), keeps=keeps, backward=backward)


def swiglu(tape: Tape, gate: Value, up: Value) -> Value:
    """SwiGLU in one kernel: keeps both inputs."""
    return tape.apply([gate, up], tape.new(gate.size), keeps=[gate, up])


def activation(tape: Tape, x: Value, kind: str) -> Value:
    """GELU keeps its input, ReLU its output."""
    output = tape.new(x.size)
    return tape.apply([x], output, keeps=[output if kind == "relu" else x])


def cross_entropy(tape: Tape, logits: Value, n: Sizes) -> Value:
    """`CausalLMLoss`: logits in fp32, whose softmax is kept and becomes their gradient."""
    wide = n.logits(4)
    narrow = logits.size
    if n.element != 4:
        logits = tape.apply([logits], tape.new(wide), backward=lambda gradient, _: [tape.new(narrow)])
    softmax = tape.new(wide)
    return tape.apply([logits], tape.new(4 * n.tokens), keeps=[softmax], backward=lambda _, kept: [kept[0]])
