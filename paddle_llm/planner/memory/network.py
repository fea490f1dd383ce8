"""The network of one pipeline stage on a tape: embedding, layers, head and loss."""

from __future__ import annotations

from functools import partial

from paddle_llm.families import FAMILIES
from paddle_llm.planner.job import BYTES, Job
from paddle_llm.planner.memory import cpu_ops, gpu_ops
from paddle_llm.planner.memory.ops import add, copy, fused_norm, linear, recompute
from paddle_llm.planner.memory.sizes import Sizes
from paddle_llm.planner.memory.tape import Block, Leaf, Tape, Value, Weight
from paddle_llm.planner.shapes.weights import (
    RankWeight,
    embedding_weights,
    head_weights,
    layer_weights,
    norm_weights,
)


class Network:
    """One rank's part of a network.

    Args:
        job: The job.
        tape: Tape on which it computes.
    """

    def __init__(self, job: Job, tape: Tape) -> None:
        self._job, self._tape, self._sizes = job, tape, Sizes.of(job)
        self._program = FAMILIES[job.model.model_type].static_program
        self._on_cpu = job.kernels.device == "cpu"
        self._cpu = FAMILIES[job.model.model_type].cpu_operations
        self._gradient_bytes = BYTES[job.precision.weights]
        self._by_layer: dict[int, dict[str, RankWeight]] = {}
        # ALiBi: one table of biases and the causal mask for all rows of a micro-batch and all layers (Press et al. 2022).
        n = self._sizes
        has_table = FAMILIES[job.model.model_type].network.positions == "ALiBi"
        self._biases = tape.new(n.heads * n.length * n.length * n.element) if has_table else None

    # ---- parts ---------------------------------------------------------------------------------------------------

    def embed(self) -> Value:
        """Return the hidden states of a micro-batch."""
        tape, n = self._tape, self._sizes
        weights = embedding_weights(self._job)
        ids = tape.new(8 * n.tokens)
        states = tape.apply([self._weight(weights[0])], tape.new(n.full), keeps=[ids])
        if any(weight.name in self._program.position_tables for weight in weights):
            states = add(tape, states, Value(tape.new(n.full)))
        return copy(tape, states, n.hidden) if n.hidden != n.full else states

    def receive(self) -> Leaf:
        """Return the hidden states that the stage before sends."""
        return Leaf(self._tape.new(self._sizes.hidden))

    def layer(self, number: int, x: Value) -> Value:
        """Return the hidden states after a layer."""
        recomputed = self._job.recompute
        if recomputed.part == "full" and number not in recomputed.kept_layers and x.node is not None:
            return recompute(self._tape, partial(self._layer, number), x)
        return self._layer(number, x)

    def head(self, x: Value) -> Value:
        """Return the loss."""
        tape, n, job = self._tape, self._sizes, self._job
        for weight in norm_weights(job):
            if len(weight.shape) == 1 and weight.name.endswith("weight"):
                x = self._norm(x, self._weight(weight))
        if n.hidden != n.full:
            x = copy(tape, x, n.full)
        labels = tape.new(8 * n.tokens)
        table = (head_weights(job) or embedding_weights(job)[:1])[0]
        if job.layout.tensor > 1 and self._on_cpu:
            x = copy(tape, x)
        logits = linear(tape, x, self._weight(table), n.logits(n.element))
        del x
        computed = logits  # the network returns them with the loss
        if FAMILIES[job.model.model_type].network.head_length_axis == 0 and job.layout.tensor == 1:
            logits = copy(tape, logits)  # [S, B, V] -> [B, S, V]; the parallel loss needs no copy
        if self._on_cpu:
            loss = cpu_ops.cross_entropy(tape, logits, n, parallel=job.layout.tensor > 1, padded=self._is_padded())
        else:
            loss = gpu_ops.cross_entropy(tape, logits, n)
        del labels, computed
        return loss

    # ---- a layer -------------------------------------------------------------------------------------------------

    def _layer(self, number: int, x: Value) -> Value:
        tape = self._tape
        weights = self._weights_of(number)
        prefix = self._program.layer.format(number)
        first, second = (weights[f"{prefix}{name}.weight"] for name in self._program.norms)
        part = partial(self._attention, number)
        states = self._norm(x, self._weight(first))
        attended = recompute(tape, part, states) if self._recomputes("full_attn", number, states) else part(states)
        del states
        x = add(tape, x, attended)
        del attended
        states = self._norm(x, self._weight(second))
        output = self._mlp(number, states)
        del states
        return add(tape, x, output)

    def _recomputes(self, part: str, number: int, x: Value) -> bool:
        recomputed = self._job.recompute
        return recomputed.part == part and number not in recomputed.kept_layers and x.node is not None

    def _attention(self, number: int, states: Value) -> Value:
        tape, n, program = self._tape, self._sizes, self._program
        if len(program.qkv) == 3 and not self._job.kernels.fused_qkv:
            widths = (n.queries, n.keys, n.keys)
            q, k, v = (
                self._linear(number, name, states, width) for name, width in zip(program.qkv, widths, strict=True)
            )
        else:
            mixed = self._linear(number, self._fused_name(), states, n.queries + 2 * n.keys)
            q, k, v = (copy(tape, mixed, size) for size in (n.queries, n.keys, n.keys))
            del mixed
        del states
        if self._on_cpu and not self._cpu.attention_in_blocks:
            if program.rotary is not None:
                angles = tape.new(2 * n.tokens * n.width * n.element)
                share = 1.0 if program.rotary == "halves" else 0.5
                q, k = (cpu_ops.rotate_plainly(tape, one, angles, share) for one in (q, k))
                del angles
            attend = partial(gpu_ops.attention, tape, n=n, kernels=self._job.kernels)
        elif self._on_cpu:
            if program.rotary is not None:
                tables = {size: cpu_ops.angles(tape, size, n) for size in {n.queries, n.keys}}
                q, k = cpu_ops.rotate(tape, q, tables[n.queries]), cpu_ops.rotate(tape, k, tables[n.keys])
                del tables
            if n.groups != n.heads:
                k, v = copy(tape, k, n.queries), copy(tape, v, n.queries)
            attend = partial(cpu_ops.causal_attention, tape, n=n)
        else:
            if program.rotary is not None:
                q, k = (gpu_ops.rotate(tape, one, self._job.kernels) for one in (q, k))
            attend = partial(gpu_ops.attention, tape, n=n, kernels=self._job.kernels)
        output = recompute(tape, attend, q, k, v) if self._recomputes("core_attn", number, q) else attend(q, k, v)
        del q, k, v
        return self._linear(number, program.out, output, n.hidden)

    def _mlp(self, number: int, states: Value) -> Value:
        tape, n, program = self._tape, self._sizes, self._program
        if program.activation != "swiglu":
            inner = self._linear(number, program.up[0], states, n.inner)
            del states
            if self._on_cpu:
                product = cpu_ops.activation(tape, inner, inner, self._cpu.activation_keeps)
            else:
                product = gpu_ops.activation(tape, inner, program.activation)
            del inner
        else:
            if len(program.up) == 2 and not self._job.kernels.fused_gate_up:
                gate, up = (self._linear(number, name, states, n.inner) for name in program.up)
            else:
                mixed = self._linear(number, self._fused_gate(), states, 2 * n.inner)
                gate, up = copy(tape, mixed, n.inner), copy(tape, mixed, n.inner)
                del mixed
            del states
            if self._on_cpu:
                product = cpu_ops.activation(tape, gate, up, self._cpu.activation_keeps)
            else:
                product = gpu_ops.swiglu(tape, gate, up)
            del gate, up
        return self._linear(number, program.down, product, n.hidden)

    def _fused_name(self) -> str:
        qkv = self._program.qkv
        return qkv[0] if len(qkv) == 1 else qkv[0].rpartition(".")[0] + ".qkv_proj"

    def _fused_gate(self) -> str:
        up = self._program.up
        return up[0] if len(up) == 1 else up[0].rpartition(".")[0] + ".gate_up_fused_proj"

    def _linear(self, number: int, name: str, x: Value, output: int) -> Value:
        """Return the output of a linear layer, with what a method of fine-tuning adds to it."""
        tape, weights = self._tape, self._weights_of(number)
        path = self._program.layer.format(number) + name
        base = weights[f"{path}.weight"]
        bias, states = weights.get(f"{path}.bias"), x
        if base.split == 1 and self._job.layout.tensor > 1:
            if self._sizes.hidden != self._sizes.full:
                states = copy(tape, x, self._sizes.full)
            elif self._on_cpu:
                states = copy(tape, x)  # c_identity copies on a CPU
        y = linear(tape, states, self._weight(base), output, self._weight(bias) if bias else None)
        del states
        low_rank = weights.get(f"{path}.lora_A")
        if low_rank is not None:
            rank = self._sizes.tokens * low_rank.shape[1] * self._sizes.element
            inner = linear(tape, x, self._weight(low_rank), rank)
            del x
            inner = copy(tape, inner)
            added = linear(tape, inner, self._weight(weights[f"{path}.lora_B"]), output)
            del inner
            y = add(tape, y, added)
        return y

    def _norm(self, x: Value, weight: Weight) -> Value:
        rows = x.size // (self._job.model.hidden_size * self._sizes.element)
        if self._job.kernels.fused_rms_norm or not self._program.rms_norm:
            return fused_norm(self._tape, x, weight, rows)
        if not self._on_cpu:
            return gpu_ops.rms_norm(self._tape, x, weight)
        return cpu_ops.rms_norm(self._tape, x, weight, keeps_input=not self._cpu.attention_in_blocks)

    def _weights_of(self, number: int) -> dict[str, RankWeight]:
        """Return the weights of a layer by name."""
        if number not in self._by_layer:
            self._by_layer[number] = {weight.name: weight for weight in layer_weights(self._job, number)}
        return self._by_layer[number]

    def _weight(self, weight: RankWeight) -> Weight:
        return Weight(self._tape, weight.size * self._gradient_bytes, weight.trained)

    def _is_padded(self) -> bool:
        return self._job.model.vocab_size % self._job.layout.tensor != 0


def loss_gradient(tape: Tape) -> Block:
    """Return the gradient with which the backward pass begins."""
    return tape.new(4)
