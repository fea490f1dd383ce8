"""The network as one program that continues a cache by some tokens: the prefill and each step of decoding.

PaddleNLP's networks concatenate each layer's cache at every token, transpose it, and repeat its key-value heads. As a
saved program they would also copy all of it in and out. Here a step receives the keys and values of earlier tokens in
buffers of the host (`generation/static`), which may be longer than their contents (a mask hides the rest), and writes
those of its own tokens into them. Nothing is copied, and the program has no state.

A step of one token is hundreds of operations of some microseconds each, most of which is the cost of a call, so there
are few operations. Everything possible is computed at export (`weights.py`). What is the same in all layers is computed
once and in full size: on a CPU an addition or multiplication that broadcasts takes 5 to 25 times as long as one that
does not.

Shapes: B rows, s tokens that are read, C positions of the buffers, H hidden, N heads, K key-value heads, G = N / K, D
head width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.static import InputSpec

from paddle_llm.export.targets.static.plan import Plan
from paddle_llm.export.targets.static.weights import StepWeights, Weight, scaled
from paddle_llm.export.targets.static.weights_file import Store, fill_weights

PROGRAM = "model"  # .json and .pdiparams
_Pair = tuple[paddle.Tensor, paddle.Tensor]  # cosines and sines, keys and values, or start and end in the buffers


def save_step_program(weights: StepWeights, folder: Path) -> None:
    """Write `model.json` and `model.pdiparams` for paddle.inference.

    Memory: the largest tensor. Paddle writes the program with uninitialized weights, which take no memory; their values
    are then written to the file one at a time.

    Args:
        weights: Weights and settings of the program.
        folder: Folder of the files.
    """
    layer = StepProgram(weights)
    layer.eval()
    program = paddle.jit.to_static(layer, input_spec=[layer.inputs()], full_graph=True)
    paddle.jit.save(program, str(folder / PROGRAM))
    fill_weights(folder / f"{PROGRAM}.pdiparams", layer.store.weights)


class StepProgram(nn.Layer):
    """The network. It computes the logits of the last token and writes keys and values to the buffers.

    Inputs, by name:
        input_ids: int64 [B, s].
        position_ids: int64 [B, R, s], with R = `Plan.position_rows`.
        places: int64 [2], the range of positions in the buffers that the tokens take.
        mask: [B, 1, s, C], added to the scores: 0, or a number far below zero for hidden positions.
        key_places: BLOOM only; [B, 1, 1, C], the number of tokens of the row before each one.
        past_k_0, past_v_0, ...: [B, K, C, D] of each layer, which are written to.

    Output: logits [B, V].
    """

    def __init__(self, weights: StepWeights) -> None:
        super().__init__()
        self.plan = plan = weights.plan
        self.store = store = Store()
        self.embedding_VH = store.parameter(weights.embedding_VH())
        self.position_tables = nn.ParameterList([store.parameter(table) for table in weights.position_tables()])
        project_in, project_out = weights.projections()
        self.project_in = _Linear(store, project_in, None) if project_in is not None else None
        self.project_out = _Linear(store, project_out, None) if project_out is not None else None
        self.first_norm = _norm(store, plan, weights.norm("first"))
        self.layers = nn.LayerList([_Layer(store, plan, weights, number) for number in range(plan.layers)])
        self.last_norm = _norm(store, plan, weights.norm("last"))
        head_HV = weights.head_HV()
        self.head = _Linear(store, head_HV, None) if head_HV is not None else None
        if plan.rotary is not None:
            self.angles = store.constant(np.concatenate([-plan.rotary, plan.rotary]))
        if plan.blocks is not None:
            self.blocks = store.constant(np.tile(plan.blocks, 2))
        if plan.slopes is not None:
            self.slopes = store.constant(plan.slopes.reshape(1, -1, 1, 1))

    def inputs(self) -> dict[str, InputSpec]:
        """Return the inputs of the program; dimensions that differ between steps are None."""
        plan = self.plan
        specs = {
            "input_ids": InputSpec([None, None], "int64", "input_ids"),
            "position_ids": InputSpec([None, plan.position_rows, None], "int64", "position_ids"),
            "places": InputSpec([2], "int64", "places"),
            "mask": InputSpec([None, 1, None, None], "float32", "mask"),
        }
        if plan.slopes is not None:
            del specs["position_ids"]
            specs["key_places"] = InputSpec([None, 1, 1, None], "float32", "key_places")
        for name in past_names(plan.layers):
            specs[name] = InputSpec([None, plan.kv_heads, None, plan.width], "float32", name)
        return specs

    def forward(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
        """Compute the logits [B, V] of the last token."""
        plan = self.plan
        hidden = self._embed(inputs)
        rotation = self._rotary(inputs)
        mask = self._mask(inputs)
        places = inputs["places"][:1], inputs["places"][1:]
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, mask, rotation, (inputs[f"past_k_{number}"], inputs[f"past_v_{number}"]), places)
        last_BH = hidden[:, -1]
        if self.last_norm is not None:
            last_BH = self.last_norm(last_BH)
        if self.project_out is not None:
            last_BH = self.project_out(last_BH)
        if self.head is None:
            logits_BV = paddle.matmul(last_BH, self.embedding_VH, transpose_y=True)
        else:
            logits_BV = self.head(last_BH)
        return logits_BV if logits_BV.shape[-1] == plan.vocabulary else logits_BV[:, : plan.vocabulary]

    def _embed(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
        hidden = F.embedding(inputs["input_ids"], self.embedding_VH)
        if self.project_in is not None:
            hidden = self.project_in(hidden)
        for row, table in enumerate(self.position_tables):
            positions = inputs["position_ids"][:, row] + self.plan.position_offset
            hidden = hidden + F.embedding(positions, table)
        return hidden if self.first_norm is None else self.first_norm(hidden)

    def _rotary(self, inputs: dict[str, paddle.Tensor]) -> _Pair | None:
        """Return cosines and sines [B, N + 2 K, s, D] for queries, keys and values.

        The first half of the sines is negative; values are not rotated.
        """
        if self.plan.rotary is None:
            return None
        position = inputs["position_ids"].astype("float32").unsqueeze(-1)  # [B, R, s, 1]
        if self.plan.blocks is not None:
            position = position[:, :1] * (1 - self.blocks) + position[:, 1:] * self.blocks
        angle_B1sD = position * self.angles
        return self._for_heads(paddle.cos(angle_B1sD), 1.0), self._for_heads(paddle.sin(angle_B1sD), 0.0)

    def _for_heads(self, rotated_B1sD: paddle.Tensor, value: float) -> paddle.Tensor:
        values_B1sD = paddle.full_like(rotated_B1sD, value)
        heads, kv_heads = self.plan.heads, self.plan.kv_heads
        return paddle.concat([rotated_B1sD] * (heads + kv_heads) + [values_B1sD] * kv_heads, axis=1)

    def _mask(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
        """Return the mask [B, K, G s, C] or [B, N, s, C] that is added to the scores. It includes ALiBi."""
        mask, kv_heads = inputs["mask"], self.plan.kv_heads
        if self.plan.slopes is not None:  # N = K
            return mask + inputs["key_places"] * self.slopes
        return paddle.tile(mask, [1, kv_heads, self.plan.heads // kv_heads, 1])


def past_names(layers: int) -> list[str]:
    """Return the names of the inputs for keys and values, layer by layer."""
    return [f"past_{which}_{number}" for number in range(layers) for which in ("k", "v")]


class _Layer(nn.Layer):
    """Attention and MLP of one layer."""

    def __init__(self, store: Store, plan: Plan, weights: StepWeights, number: int) -> None:
        super().__init__()
        self.plan = plan
        self.norm_1: nn.Layer = _norm(store, plan, weights.norm("attention", number))
        self.qkv = _Linear(store, *weights.linear("qkv", number))
        self.out = _Linear(store, *weights.linear("out", number))
        self.norm_2: nn.Layer = _norm(store, plan, weights.norm("mlp", number))
        self.up = _Linear(store, *weights.linear("up", number))
        self.down = _Linear(store, *weights.linear("down", number))

    def forward(
        self, hidden: paddle.Tensor, mask: paddle.Tensor, rotation: _Pair | None, past: _Pair, places: _Pair
    ) -> paddle.Tensor:
        if not self.plan.norm_first:
            hidden = self.norm_1(hidden + self._attention(hidden, mask, rotation, past, places))
            return self.norm_2(hidden + self._mlp(hidden))
        normed = self.norm_1(hidden)
        hidden = self._residual(hidden, normed) + self._attention(normed, mask, rotation, past, places)
        normed = self.norm_2(hidden)
        return self._residual(hidden, normed) + self._mlp(normed)

    def _residual(self, hidden: paddle.Tensor, normed: paddle.Tensor) -> paddle.Tensor:
        if self.plan.residual is None:
            return hidden
        return normed if self.plan.residual == 1 else normed * self.plan.residual

    def _attention(
        self, x: paddle.Tensor, mask: paddle.Tensor, rotation: _Pair | None, past: _Pair, places: _Pair
    ) -> paddle.Tensor:
        plan = self.plan
        heads, kv_heads, width = plan.heads, plan.kv_heads, plan.width
        states = self.qkv(x).reshape([0, 0, heads + 2 * kv_heads, width]).transpose([0, 2, 1, 3])
        if rotation is not None:
            cosine, sine = rotation
            states = states * cosine + paddle.roll(states, width // 2, axis=-1) * sine
        query, key, value = paddle.split(states, [heads, kv_heads, kv_heads], axis=1)
        keys, values = _write(past[0], key, places), _write(past[1], value, places)
        if heads != kv_heads:
            query = query.reshape([0, kv_heads, -1, width])  # [B, K, G s, D]
        weights = F.softmax(paddle.matmul(query, keys, transpose_y=True) + mask, axis=-1)
        output = paddle.matmul(weights, values)
        if heads != kv_heads:
            output = output.reshape([0, heads, -1, width])
        return self.out(output.transpose([0, 2, 1, 3]).reshape([0, 0, heads * width]))

    def _mlp(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.up(x)
        kind = self.plan.activation
        if kind == "swiglu":
            return self.down(F.swiglu(x))
        return self.down(F.relu(x) if kind == "relu" else F.gelu(x, approximate=True))


def _write(buffer: paddle.Tensor, states: paddle.Tensor, places: _Pair) -> paddle.Tensor:
    """Write states [B, K, s, D] into a buffer [B, K, C, D] in place.

    `buffer[:, :, start:end] = states` would copy the buffer; Paddle's in-place operation has no public name.
    """
    start, end = places
    return paddle._C_ops.set_value_with_tensor_(buffer, states, start, end, [1], [2], [], [])


class _Linear(nn.Layer):
    def __init__(self, store: Store, weight: Weight, bias: Weight | None) -> None:
        super().__init__()
        self.weight = store.parameter(weight)
        self.bias = None if bias is None else store.parameter(bias)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.linear(x, self.weight, self.bias)


class _RMSNorm(nn.Layer):
    """RMSNorm as an L2 norm, x / sqrt(sum(x^2) + H epsilon), with sqrt(H) in the weight: two operations, not six."""

    def __init__(self, store: Store, weight: Weight, epsilon: float) -> None:
        super().__init__()
        self.hidden = weight.shape[0]
        self.weight, self.epsilon = store.parameter(scaled(weight, self.hidden**0.5)), epsilon

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        normed, _ = paddle._C_ops.norm(x, -1, self.hidden * self.epsilon, True)
        return normed * self.weight


class _LayerNorm(nn.Layer):
    def __init__(self, store: Store, weight: Weight, bias: Weight, epsilon: float) -> None:
        super().__init__()
        self.weight, self.bias, self.epsilon = store.parameter(weight), store.parameter(bias), epsilon

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


def _norm(store: Store, plan: Plan, tensors: tuple[Weight, Weight | None] | None) -> nn.Layer | None:
    if tensors is None:
        return None
    weight, bias = tensors
    return _RMSNorm(store, weight, plan.epsilon) if bias is None else _LayerNorm(store, weight, bias, plan.epsilon)
