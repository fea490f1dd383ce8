"""Prefixes and prompts outside plain training: with a cache, padded and packed."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.peft.method import Method
from tests.helpers.models.adapters import METHODS, attached, logits, network, set_trained

STEPS = 5


def adapted(folder, family, name):
    model = attached(network(folder, family, **({} if family == "opt" else {"initializer_range": 0.2})), METHODS[name])
    set_trained(model)
    return model


def greedy(model, ids, mask=None) -> np.ndarray:
    """Return the tokens [B, STEPS] of PaddleNLP's generation, which caches keys and values."""
    import paddle

    mask = np.ones_like(ids) if mask is None else mask
    inputs = {"input_ids": paddle.to_tensor(ids), "attention_mask": paddle.to_tensor(mask)}
    tokens, _ = model.generate(
        **inputs, max_new_tokens=STEPS, decode_strategy="greedy_search", eos_token_id=-1, pad_token_id=0
    )
    return tokens.numpy()


def recomputed(model, ids) -> np.ndarray:
    """Return the same, with the whole text recomputed for each token."""
    import paddle

    for _ in range(STEPS):
        tokens = paddle.to_tensor(ids)
        mask = paddle.ones_like(tokens)
        last = logits(model, inputs={"input_ids": tokens, "attention_mask": mask})[:, -1]
        ids = np.concatenate([ids, last.argmax(-1)[:, None]], axis=1)
    return ids[:, -STEPS:]


@pytest.mark.parametrize("family", ["llama", "qwen2", "chatglm_v2", "bloom", "opt", "mistral"])
@pytest.mark.parametrize("name", ["prefix", "projected prefix", "prompt", "lora"])
def test_generation_with_and_without_a_cache_is_equal(tmp_path, family, name):
    model = adapted(tmp_path, family, name)
    ids = np.random.default_rng(1).integers(5, 100, (2, 7))
    if name == "prompt":
        from paddle_llm.peft.methods.prompt import with_prompt

        ids = np.stack([with_prompt({"input_ids": row}, METHODS[name])["input_ids"] for row in ids])
    assert np.array_equal(greedy(model, ids), recomputed(model, ids))


@pytest.mark.parametrize("family", ["llama", "qwen2", "bloom", "mistral"])
@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_padding_on_the_left_changes_nothing(tmp_path, family, name):
    from paddle_llm.peft.methods.prompt import with_prompt

    model = adapted(tmp_path, family, name)
    rows = [np.random.default_rng(1).integers(5, 100, length) for length in (7, 4)]
    if name == "prompt":
        rows = [with_prompt({"input_ids": row}, METHODS[name])["input_ids"] for row in rows]
    alone = [greedy(model, row[None])[0] for row in rows]
    padding = len(rows[0]) - len(rows[1])
    ids = np.stack([rows[0], np.pad(rows[1], (padding, 0))])
    mask = np.stack([np.ones(len(rows[0])), np.pad(np.ones(len(rows[1])), (padding, 0))]).astype("int64")
    assert np.array_equal(greedy(model, ids, mask), np.stack(alone))


@pytest.mark.parametrize("family", ["llama", "qwen2", "chatglm_v2", "opt", "mistral"])
def test_every_packed_sample_sees_the_prefix(tmp_path, family):
    import paddle

    model = adapted(tmp_path, family, "prefix")
    one, two = (np.random.default_rng(seed).integers(5, 100, (1, length)) for seed, length in ((1, 6), (2, 9)))
    packed = {
        "input_ids": paddle.to_tensor(np.concatenate([one, two], axis=1)),
        "segment_lengths": paddle.to_tensor(np.array([[6, 9]])),
    }
    together = logits(model, inputs=packed)[0]
    apart = [logits(model, inputs={"input_ids": paddle.to_tensor(ids)})[0] for ids in (one, two)]
    assert np.abs(together - np.concatenate(apart)).max() < 1e-4 * np.abs(together).max()


@pytest.mark.parametrize("projected", [False, True])
def test_a_prefix_equals_keys_and_values_before_those_of_the_tokens(tmp_path, projected):
    """One token at position 0, where rotary embeddings rotate nothing: the softmax over prefix and token is computed by hand."""
    import paddle
    import paddle.nn.functional as F

    method = METHODS["projected prefix" if projected else "prefix"]
    model = attached(network(tmp_path, num_key_value_heads=2), method)
    set_trained(model)
    layer, x = model.llama.layers[1].self_attn, paddle.randn([1, 1, 64])
    if projected:
        hidden = paddle.tanh(model.prefix_embedding @ model.prefix_weight + model.prefix_bias)
        weights = (layer.prefix_key_weight, layer.prefix_value_weight)
        key, value = (paddle.einsum("ph,hgd->pgd", hidden, weight) for weight in weights)
    else:
        key, value = layer.prefix_key, layer.prefix_value
    query = layer.q_proj(x).reshape([4, 16])
    key, value = (
        paddle.concat([prefix, own(x).reshape([1, 2, 16])]).repeat_interleave(2, axis=1)
        for prefix, own in ((key, layer.k_proj), (value, layer.v_proj))
    )
    shares = F.softmax(paddle.einsum("nd,tnd->nt", query, key) / 4, axis=-1)
    expected = layer.o_proj(paddle.einsum("nt,tnd->nd", shares, value).reshape([1, 1, 64]))
    found = layer(x, position_ids=paddle.zeros([1, 1], dtype="int64"))
    found = found[0] if isinstance(found, tuple) else found
    assert np.allclose(found.numpy(), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "chatglm_v2", "bloom", "opt", "mistral"])
def test_a_prompt_with_token_embeddings_equals_those_tokens(tmp_path, family):
    import paddle

    from paddle_llm.models.weights.names import EMBEDDINGS
    from paddle_llm.peft.attach import trainable_tensors
    from paddle_llm.peft.methods.prompt import with_prompt
    from tests.helpers.models.adapters import base_values

    model, words = adapted(tmp_path, family, "prompt"), np.array([17, 5, 90])
    ((_, prompt, _),) = trainable_tensors(model)
    prompt.set_value(paddle.to_tensor(base_values(model)[EMBEDDINGS[family]][words]))
    ids = np.array([30, 31, 32, 33])
    learned, read = with_prompt({"input_ids": ids}, METHODS["prompt"])["input_ids"], np.concatenate([words, ids])
    outputs = [logits(model, inputs={"input_ids": paddle.to_tensor(row[None])}) for row in (learned, read)]
    assert np.array_equal(*outputs)


def test_a_prompt_precedes_a_sample_and_has_no_loss():
    from paddle_llm.peft.methods.prompt import FIRST_PROMPT_ID, with_prompt

    sample = {"input_ids": np.array([5, 6, 7]), "labels": np.array([-100, 7, 2])}
    longer = with_prompt(sample, Method("prompt", num_prompt_tokens=2))
    assert longer["input_ids"].tolist() == [FIRST_PROMPT_ID, FIRST_PROMPT_ID + 1, 5, 6, 7]
    assert longer["labels"].tolist() == [-100, -100, -100, 7, 2]
