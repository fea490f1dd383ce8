"""The table of names, transposes and shards equals that of PaddleNLP, which cannot read slices or pad."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_llm.families import FAMILIES
from paddle_llm.models.weights.initialization import draw_normal
from paddle_llm.models.weights.names import EMBEDDINGS, canonical_parameters, hugging_face
from paddle_llm.models.weights.shards import Shard, assemble, shard_of, split_axis
from tests.helpers.models.networks import WRITERS, build


@pytest.mark.parametrize("family", ["llama", "bloom", "opt", "qwen2"])
def test_names_are_those_of_paddlenlps_mapping(tmp_path, family):
    model = build(WRITERS[family](tmp_path))
    mapping = {m.target_name: (m.source_name, m.action) for m in model._get_name_mappings(model.config)}
    for name, parameter in canonical_parameters(model, family):
        there = hugging_face(family, name, parameter.ndim)
        assert (there.name, "transpose" if there.transpose else None) == mapping[name], name


@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_shards_are_those_of_paddlenlps_tensor_parallel_mapping(tmp_path, family, degree):
    overrides = {"multi_query_group_num": 4} if family == "chatglm_v2" else {}
    model = build(WRITERS[family](tmp_path, **overrides))
    config = model.config
    for rank in range(degree):
        config.tensor_parallel_degree, config.tensor_parallel_rank = degree, rank
        actions = model._get_tensor_parallel_mappings(config, is_split=True)
        for name, parameter in canonical_parameters(model, family):
            action = next((fn for end, fn in actions.items() if name.endswith(end)), None)
            full = parameter.numpy()
            local = list(full.shape)
            local[split_axis(family, name, full.ndim)] //= degree if action else 1
            shard = shard_of(family, name, local, action is not None, config, degree, rank)
            expected = full if action is None else np.asarray(action(paddle.to_tensor(full)))
            np.testing.assert_array_equal(shard.take(full), expected, err_msg=name)


@pytest.mark.parametrize("axis", [0, 1])
def test_random_weights_of_shards_are_those_of_the_full_tensor(axis):
    shape = (200, 150)
    full = draw_normal(7, "w", Shard(shape, axis, ((0, shape[axis]),)))
    assert abs(full.mean()) < 0.02 and abs(full.std() - 1) < 0.02
    ranges = ((3, 70), (100, 128))
    shard = Shard(shape, axis, ranges)
    np.testing.assert_array_equal(draw_normal(7, "w", shard), shard.take(full))
    padded = draw_normal(7, "w", Shard((204, 150) if axis == 0 else (200, 152), axis, ((0, shape[axis]),)))
    np.testing.assert_array_equal(padded, full)


def test_every_family_has_its_embedding(tmp_path):
    for family, writer in WRITERS.items():
        names = [name for name, _ in canonical_parameters(build(writer(tmp_path / family)), family)]
        assert EMBEDDINGS[family] in names and len(names) == len(set(names))


def test_shards_assemble_to_the_full_tensor():
    full = np.arange(6 * 8).reshape(6, 8)
    shards = [Shard((6, 8), 1, ((2 * rank, 2 * rank + 2), (4 + 2 * rank, 6 + 2 * rank))) for rank in range(2)]
    np.testing.assert_array_equal(assemble(shards, [shard.take(full) for shard in shards]), full)
