"""The network as one program that reads some tokens behind those of a cache: the prefill, and each step of decoding.

PaddleNLP's networks concatenate each layer's cache anew at every token, turn it around, and repeat its key-value heads;
as a saved program they would also copy all of it in and out. Here a step is given the keys and values of earlier tokens
in buffers that may be longer than what is in them (a mask says so), and gives back those of its own tokens alone, which
the host puts into the buffers (`generation/static_network.py`): nothing is copied twice, and the program has no state.

Shapes: B rows, s tokens that are read, C places of the buffers, T = C + s, L layers, H hidden, N heads, K key-value heads,
G = N / K, D head width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.static import InputSpec

from paddle_llm.export.step_file import Store, fill_weights
from paddle_llm.export.step_plan import Plan
from paddle_llm.export.step_weights import StepWeights, Weight

PROGRAM = "model"  # .json and .pdiparams


def save_step_program(weights: StepWeights, folder: Path) -> None:
    """Write `model.json` and `model.pdiparams` for paddle.inference.

    Memory: the largest tensor. Paddle writes the program with weights that were never touched, so that they take no memory;
    their values are then put into the file one by one.
    """
    layer = StepProgram(weights)
    layer.eval()
    program = paddle.jit.to_static(layer, input_spec=[layer.inputs()], full_graph=True)
    paddle.jit.save(program, str(folder / PROGRAM))
    fill_weights(folder / f"{PROGRAM}.pdiparams", layer.store.weights)


class StepProgram(nn.Layer):
    """Tokens in, logits of the last one and all new keys and values out.

    Inputs, by name:
        input_ids: int64 [B, s]; position_ids: int64 [B, R, s], R of `Plan.position_rows`.
        mask: [B, 1, s, T], added to the scores: 0, or a number far below zero for what is not looked at.
        key_places: BLOOM only; [B, 1, 1, T]: how many tokens of its row stand before each one.
        past_k_0, past_v_0, ...: [B, K, C, D] of each layer.

    Outputs: logits [B, V], and keys and values of the new tokens [2 L, B, K, s, D], in the order of the past.
    """

    def __init__(self, weights: StepWeights):
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
            self.angles = store.constant(plan.rotary)
        if plan.blocks is not None:
            self.blocks = store.constant(plan.blocks)
        if plan.slopes is not None:
            self.slopes = store.constant(plan.slopes.reshape(1, -1, 1, 1))

    def inputs(self) -> dict[str, InputSpec]:
        """What the program takes, with None for what differs from step to step."""
        plan = self.plan
        specs = {
            "input_ids": InputSpec([None, None], "int64", "input_ids"),
            "position_ids": InputSpec([None, plan.position_rows, None], "int64", "position_ids"),
            "mask": InputSpec([None, 1, None, None], "float32", "mask"),
        }
        if plan.slopes is not None:
            del specs["position_ids"]
            specs["key_places"] = InputSpec([None, 1, 1, None], "float32", "key_places")
        for name in past_names(plan.layers):
            specs[name] = InputSpec([None, plan.kv_heads, None, plan.width], "float32", name)
        return specs

    def forward(self, inputs: dict[str, paddle.Tensor]) -> tuple[paddle.Tensor, paddle.Tensor]:
        plan = self.plan
        hidden = self._embed(inputs)
        turn = self._rotary(inputs)
        mask = self._mask(inputs)
        new = []
        for number, layer in enumerate(self.layers):
            past = inputs[f"past_k_{number}"], inputs[f"past_v_{number}"]
            hidden, key, value = layer(hidden, mask, turn, past)
            new += [key, value]
        last_BH = hidden[:, -1]
        if self.last_norm is not None:
            last_BH = self.last_norm(last_BH)
        if self.project_out is not None:
            last_BH = self.project_out(last_BH)
        if self.head is None:
            logits_BV = paddle.matmul(last_BH, self.embedding_VH, transpose_y=True)
        else:
            logits_BV = self.head(last_BH)
        return logits_BV[:, : plan.vocabulary], paddle.stack(new)

    def _embed(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
        hidden = F.embedding(inputs["input_ids"], self.embedding_VH)
        if self.project_in is not None:
            hidden = self.project_in(hidden)
        for row, table in enumerate(self.position_tables):
            places = inputs["position_ids"][:, row] + self.plan.position_offset
            hidden = hidden + F.embedding(places, table)
        return hidden if self.first_norm is None else self.first_norm(hidden)

    def _rotary(self, inputs: dict[str, paddle.Tensor]) -> tuple[paddle.Tensor, paddle.Tensor] | None:
        """Cosines and sines [B, s, 1, D], the first half of the sines negative."""
        if self.plan.rotary is None:
            return None
        places_BRs = inputs["position_ids"].astype("float32")
        place = places_BRs[:, 0].unsqueeze([2, 3])
        if self.plan.blocks is not None:
            place = place * (1 - self.blocks) + places_BRs[:, 1].unsqueeze([2, 3]) * self.blocks
        angle = place * self.angles
        cosine, sine = paddle.cos(angle), paddle.sin(angle)
        return paddle.concat([cosine, cosine], axis=-1), paddle.concat([-sine, sine], axis=-1)

    def _mask(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
        """What is added to the scores [B, K, G s, T]."""
        mask = inputs["mask"]
        group = self.plan.heads // self.plan.kv_heads
        if self.plan.slopes is not None:
            mask = mask + inputs["key_places"] * self.slopes
        return mask if group == 1 else paddle.tile(mask, [1, 1, group, 1])


def past_names(layers: int) -> list[str]:
    """Names of the inputs of keys and values, in the order of the output that they come from."""
    return [f"past_{which}_{number}" for number in range(layers) for which in ("k", "v")]


class _Layer(nn.Layer):
    def __init__(self, store: Store, plan: Plan, weights: StepWeights, number: int):
        super().__init__()
        self.plan, self.scale = plan, plan.scales[number]
        self.norm_1 = _norm(store, plan, weights.norm("attention", number))
        self.qkv = _Linear(store, *weights.linear("qkv", number))
        self.out = _Linear(store, *weights.linear("out", number))
        self.norm_2 = _norm(store, plan, weights.norm("mlp", number))
        self.up = _Linear(store, *weights.linear("up", number))
        self.down = _Linear(store, *weights.linear("down", number))

    def forward(self, hidden: Any, mask: Any, turn: Any, past: Any) -> tuple[Any, Any, Any]:
        plan = self.plan
        if not plan.norm_first:
            attended, key, value = self._attention(hidden, mask, turn, past)
            hidden = self.norm_1(hidden + attended)
            return self.norm_2(hidden + self._mlp(hidden)), key, value
        normed = self.norm_1(hidden)
        attended, key, value = self._attention(normed, mask, turn, past)
        hidden = self._residual(hidden, normed) + attended
        normed = self.norm_2(hidden)
        return self._residual(hidden, normed) + self._mlp(normed), key, value

    def _residual(self, hidden: Any, normed: Any) -> Any:
        if self.plan.residual is None:
            return hidden
        return normed if self.plan.residual == 1 else normed * self.plan.residual

    def _attention(self, x: Any, mask: Any, turn: Any, past: Any) -> tuple[Any, Any, Any]:
        plan = self.plan
        heads, kv_heads, width = plan.heads, plan.kv_heads, plan.width
        states = self.qkv(x).reshape([0, 0, heads + 2 * kv_heads, width])
        turned, value = paddle.split(states, [heads + kv_heads, kv_heads], axis=2)
        if turn is not None:
            cosine, sine = turn
            first, second = paddle.split(turned, 2, axis=-1)
            turned = turned * cosine + paddle.concat([second, first], axis=-1) * sine
        query, key = paddle.split(turned, [heads, kv_heads], axis=2)
        key, value = key.transpose([0, 2, 1, 3]), value.transpose([0, 2, 1, 3])  # [B, K, s, D]
        query = (query * self.scale).reshape([0, 0, kv_heads, heads // kv_heads, width])
        query = query.transpose([0, 2, 3, 1, 4]).reshape([0, kv_heads, -1, width])  # [B, K, G s, D]
        past_k, past_v = past
        scores = [paddle.matmul(query, states, transpose_y=True) for states in (past_k, key)]
        weights = F.softmax(paddle.concat(scores, axis=-1) + mask, axis=-1)
        places, new = paddle.shape(past_k)[2], paddle.shape(key)[2]
        before, now = paddle.split(weights, [places, new], axis=-1)
        output = paddle.matmul(before, past_v) + paddle.matmul(now, value)
        output = output.reshape([0, kv_heads, heads // kv_heads, -1, width])
        output = output.transpose([0, 3, 1, 2, 4]).reshape([0, 0, heads * width])
        return self.out(output), key, value

    def _mlp(self, x: Any) -> Any:
        x = self.up(x)
        kind = self.plan.activation
        if kind == "swiglu":
            return self.down(F.swiglu(x))
        return self.down(F.relu(x) if kind == "relu" else F.gelu(x, approximate=True))


class _Linear(nn.Layer):
    def __init__(self, store: Store, weight: Weight, bias: Weight | None):
        super().__init__()
        self.weight = store.parameter(weight)
        self.bias = None if bias is None else store.parameter(bias)

    def forward(self, x: Any) -> Any:
        return F.linear(x, self.weight, self.bias)


class _RMSNorm(nn.Layer):
    def __init__(self, store: Store, weight: Weight, epsilon: float):
        super().__init__()
        self.weight, self.epsilon = store.parameter(weight), epsilon

    def forward(self, x: Any) -> Any:
        scale = paddle.rsqrt(paddle.mean(x * x, axis=-1, keepdim=True) + self.epsilon)
        return x * scale * self.weight


class _LayerNorm(nn.Layer):
    def __init__(self, store: Store, weight: Weight, bias: Weight, epsilon: float):
        super().__init__()
        self.weight, self.bias, self.epsilon = store.parameter(weight), store.parameter(bias), epsilon

    def forward(self, x: Any) -> Any:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


def _norm(store: Store, plan: Plan, tensors: tuple[Weight, Weight | None] | None) -> nn.Layer | None:
    if tensors is None:
        return None
    weight, bias = tensors
    return _RMSNorm(store, weight, plan.epsilon) if bias is None else _LayerNorm(store, weight, bias, plan.epsilon)
