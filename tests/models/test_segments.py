"""A packed row equals its samples: the same loss, gradients and cost."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_llm.models.patches.shared.packed_rows import (
    attend,
    group_short_samples,
    packed_prefix_mask,
    sample_ends,
    sample_ends_of_starts,
    sample_lengths,
    sample_positions,
    sample_positions_of,
    sample_starts,
)
from tests.helpers.models.networks import WRITERS, build

LENGTHS = [[5, 3, 9], [11, 1, 0]]  # the second row has two samples and padding
ROW = 20
PACKED_FAMILIES = ["llama", "qwen2", "chatglm_v2", "bloom", "opt", "mistral"]


def samples() -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(0)
    found = []
    for length in (length for row in LENGTHS for length in row if length):
        tokens = draw.integers(4, 120, length + 1)
        labels = tokens[1:].copy()
        labels[: length // 2] = -100
        found.append((tokens[:-1], labels))
    return found


def packed() -> dict[str, paddle.Tensor]:
    inputs, labels = np.zeros((2, ROW), np.int64), np.full((2, ROW), -100, np.int64)
    parts = iter(samples())
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for length in filter(None, lengths):
            inputs[row, at : at + length], labels[row, at : at + length] = next(parts)
            at += length
    arrays = {"input_ids": inputs, "labels": labels, "segment_lengths": np.array(LENGTHS)}
    return {name: paddle.to_tensor(value) for name, value in arrays.items()}


def unpacked_step(model) -> tuple[float, dict[str, np.ndarray]]:
    """Return the mean loss over the labels of all samples, computed sample by sample, and its gradients."""
    count = sum(int((labels != -100).sum()) for _, labels in samples())
    total = 0.0
    for inputs, labels in samples():
        share = (labels != -100).sum() / count
        loss = model(input_ids=paddle.to_tensor(inputs[None]), labels=paddle.to_tensor(labels[None]))[0] * float(share)
        loss.backward()
        total += float(loss)
    return total, {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def test_positions_and_ends_determine_each_other():
    ends = sample_ends(paddle.to_tensor(LENGTHS), ROW)
    np.testing.assert_array_equal(sample_ends_of_starts(sample_starts(ends)).numpy(), ends.numpy())
    np.testing.assert_array_equal(
        sample_positions_of(ends).numpy(), sample_positions(paddle.to_tensor(LENGTHS), ROW).numpy()
    )


@pytest.mark.parametrize("fields", [{}, {"recompute": True}, {"recompute": True, "recompute_granularity": "core_attn"}])
@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_a_packed_row_equals_its_samples(tmp_path, family, fields):
    folder = WRITERS[family](tmp_path)
    loss, gradients = unpacked_step(build(folder, length=ROW))
    model = build(folder, length=ROW, **fields)
    model.train()
    if fields:
        model.recompute_enable()
    together = model(**packed())[0]
    together.backward()
    assert float(together) == pytest.approx(loss, rel=1e-5)
    for name, parameter in model.named_parameters():
        wanted = gradients[name]
        error = np.linalg.norm(parameter.grad.numpy() - wanted) / max(
            np.linalg.norm(wanted), 1e-3
        )  # the key bias of OPT has no gradient
        assert error < 1e-5, (name, error)


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_other_arguments_are_passed_on(tmp_path, family):
    model = build(WRITERS[family](tmp_path), length=ROW)
    outputs = model(**packed(), return_dict=True, output_hidden_states=True)
    assert outputs.loss is not None and len(outputs.hidden_states) == 5


def test_first_positions_and_lengths_of_samples_are_found():
    lengths = paddle.to_tensor(LENGTHS)
    ends, positions = sample_ends(lengths, ROW), sample_positions(lengths, ROW)
    assert sample_lengths(ends) == [5, 3, 9, 3, 11, 1, 8]
    assert positions.numpy().tolist()[1] == [*range(11), 0, *range(8)]
    assert ends.numpy().tolist()[0] == [5] * 5 + [8] * 3 + [17] * 9 + [20] * 3
    assert group_short_samples([100, 20, 20, 300, 5]) == [[100, 20], [20], [300], [5]]


@pytest.mark.parametrize("family", ["chatglm", "glm"])
def test_packed_samples_with_prefixes_are_read_alone(tmp_path, family):
    """The logits of each sample equal those that it has alone."""
    from paddle_llm.data.samples.dataset import prefix_positions

    model = build(WRITERS[family](tmp_path), length=ROW)
    model.eval()
    lengths, prefixes = [7, 9], [3, 5]
    tokens = np.random.default_rng(1).integers(4, 120, sum(lengths))
    positions = [prefix_positions(length, prefix) for length, prefix in zip(lengths, prefixes, strict=True)]
    together = model(
        input_ids=paddle.to_tensor(tokens[None]),
        position_ids=paddle.to_tensor(np.concatenate(positions, axis=-1)[None]),
        segment_lengths=paddle.to_tensor([lengths]),
        prefix_lengths=paddle.to_tensor([prefixes]),
    )[0]
    at = 0
    for length, prefix, place in zip(lengths, prefixes, positions, strict=True):
        alone = model(
            input_ids=paddle.to_tensor(tokens[None, at : at + length]),
            position_ids=paddle.to_tensor(place[None]),
            attention_mask=paddle.to_tensor([[prefix]]),
        )[0]
        np.testing.assert_allclose(together[:, at : at + length].numpy(), alone.numpy(), atol=1e-5)
        at += length
    assert (
        packed_prefix_mask(paddle.to_tensor([lengths]), paddle.to_tensor([prefixes]), ROW).sum()
        == (28 + 3) + (45 + 10) + 10
    )


@pytest.mark.parametrize("slopes", [None, [0.5, 0.25]])
def test_attention_by_sample_equals_attention_with_a_mask(slopes):
    from paddle_llm.models.patches.shared.packed_rows import _attend_with_full_mask

    lengths = [[150, 30, 20, 7], [200, 7, 0, 0]]
    ends = sample_ends(paddle.to_tensor(lengths), 210)
    states = [paddle.randn([2, 210, 2, 8]) for _ in range(3)]
    results = []
    for compute in (
        lambda *qkv: attend(*qkv, ends, slopes=slopes),
        lambda *qkv: _attend_with_full_mask(*qkv, ends, slopes, 0.0),
    ):
        qkv = [state.detach() for state in states]
        for state in qkv:
            state.stop_gradient = False
        output = compute(*qkv)
        (output * states[0]).sum().backward()
        results.append([output, *(state.grad for state in qkv)])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one.numpy(), two.numpy(), atol=2e-5)


def test_the_cost_of_a_row_is_that_of_its_samples(monkeypatch):
    """Sixteen samples of 128 in a row of 2048 have a sixteenth of the scores of one sample of 2048.

    The attention of that one skips nearly half of its scores, which are in the future.
    """
    matmul = paddle.matmul

    def multiplications(lengths: list[int]) -> int:
        total = 0

        def counted(x, y, transpose_x=False, transpose_y=False):
            nonlocal total
            product = matmul(x, y, transpose_x, transpose_y)
            total += product.size * x.shape[-2 if transpose_x else -1]
            return product

        monkeypatch.setattr(paddle, "matmul", counted)
        ends = sample_ends(paddle.to_tensor([lengths]), 2048)
        states = [paddle.randn([1, 2048, 4, 32]) for _ in range(3)]
        for state in states:
            state.stop_gradient = False
        attend(*states, ends).sum().backward()
        return total

    assert 0 < multiplications([128] * 16) < multiplications([2048]) / 8
