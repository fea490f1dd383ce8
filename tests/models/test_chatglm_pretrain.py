"""Pretraining samples of ChatGLM-6B: the prefix, the labels, and positions as PaddleNLP's network computes them."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.core.errors import UserError
from paddle_llm.models.chatglm_pretrain import ChatGLMPretrainTransform, context_length, sample_transform
from paddle_llm.models.patches.shared.packed_rows import prefix_mask
from tests.helpers.models import tiny
from tests.helpers.models.networks import batch, build

GMASK, SOP = 125, 126


def window(seed, size=17):
    return np.random.default_rng(seed).integers(4, 120, size)


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_is_context_marks_and_continuation(seed):
    tokens = window(seed)
    sample = ChatGLMPretrainTransform(GMASK, SOP)(tokens)
    context = context_length(tokens)
    ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
    assert len(ids) == len(labels) == 16
    assert ids == [*tokens[:context], GMASK, SOP, *tokens[context:14]]
    assert labels == [-100] * (context + 1) + tokens[context:15].tolist()
    assert sample["attention_mask"].tolist() == [ids.index(SOP)]
    assert all(value.dtype == np.int64 for value in sample.values())


def test_cuts_depend_on_the_tokens_alone_and_cover_their_range():
    cuts = [context_length(window(seed)) for seed in range(300)]
    assert cuts == [context_length(window(seed)) for seed in range(300)]
    assert set(cuts) == set(range(1, 8))


def test_positions_are_those_of_paddlenlp(tmp_path):
    model = build(tiny.write_chatglm(tmp_path))
    inputs = batch("chatglm")
    marks = [paddle.where(row == GMASK)[0][0] for row in inputs["input_ids"]]
    expected = model.get_position_ids(inputs["input_ids"], mask_positions=marks, use_gmasks=[True, True])
    np.testing.assert_array_equal(inputs["position_ids"].numpy(), expected.numpy())


def test_the_mask_sees_the_prefix_and_backwards():
    mask = prefix_mask(paddle.to_tensor([[2], [0]]), 4).numpy()[:, 0].astype(int)
    assert mask[0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert mask[1].tolist() == np.tril(np.ones((4, 4), int)).tolist()


def test_the_network_sees_the_prefix_both_ways_and_never_ahead(tmp_path):
    model = build(tiny.write_chatglm(tmp_path))
    model.eval()
    inputs = batch("chatglm", rows=1)
    prefix = int(inputs["attention_mask"][0, 0])
    plain = model(**inputs)[1].numpy()[0]

    def moved(position):
        changed = inputs["input_ids"].clone()
        changed[0, position] = (int(changed[0, position]) + 1) % 100
        return np.abs(model(**{**inputs, "input_ids": changed})[1].numpy()[0] - plain).max(axis=-1) > 1e-6

    assert moved(prefix - 2)[0], "the first position does not see the end of the context"
    assert not moved(prefix + 3)[: prefix + 3].any(), "a position sees what comes after it"


def test_full_masks_give_the_same_loss(tmp_path):
    model = build(tiny.write_chatglm(tmp_path))
    inputs = batch("chatglm")
    loss = model(**inputs)[0]
    inputs["attention_mask"] = prefix_mask(inputs["attention_mask"], 16)
    assert float(loss) == float(model(**inputs)[0])


def test_the_transform_of_a_folder(tmp_path, capsys):
    assert sample_transform(read_model_facts(tiny.write_llama(tmp_path / "llama"))) is None
    facts = read_model_facts(tiny.write_chatglm(tmp_path / "chatglm"))
    sample = sample_transform(facts)(window(0))
    assert GMASK in sample["input_ids"] and SOP in sample["input_ids"]
    assert "[gMASK]" in capsys.readouterr().err
    outside = read_model_facts(tiny.write_chatglm(tmp_path / "small", vocab_size=100))
    with pytest.raises(UserError, match="gmask_token_id = 125 is outside"):
        sample_transform(outside)
