"""Every family generates the same tokens with and without padding and caches, and those of PaddleNLP where it is right."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.generation.options import DecodeOptions, DecodeStrategy
from paddle_llm.models.prompt import Prompt
from tests.helpers.models.folders import write_folder
from tests.helpers.models.networks import WRITERS, build

LENGTHS = (7, 3, 9)
STEPS = 8
GREEDY = DecodeStrategy()


@pytest.fixture(scope="module", params=WRITERS)
def network(request, tmp_path_factory):
    """(model, its family)."""
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    WRITERS[family](folder, **{"init_std" if family == "opt" else "initializer_range": 0.3})
    model = build(folder)
    model.eval()
    return model, family


def prompts(family: str) -> list[Prompt]:
    """Return prompts of unequal lengths; those of ChatGLM-6B end with [gMASK] and <sop>."""
    rows = [np.random.default_rng(length).integers(5, 100, length).tolist() for length in LENGTHS]
    return [Prompt([*row, 125, 126], len(row) + 1) for row in rows] if family == "chatglm" else [*map(Prompt, rows)]


def decoded(network, prompts, strategy=GREEDY, stop_ids=()):
    from paddle_llm.generation.decoding.decode import decode

    model, family = network
    return decode(model, prompts, [STEPS] * len(prompts), DecodeOptions(family, stop_ids, strategy))


def without_cache(network, prompt: Prompt) -> list[int]:
    """Decode greedily, and compute the whole text again for each token."""
    import paddle

    from paddle_llm.data.samples.dataset import prefix_positions

    (model, family), ids = network, list(prompt.ids)
    for _ in range(STEPS):
        inputs = {"input_ids": np.array([ids])}
        if family == "chatglm":
            inputs["position_ids"] = prefix_positions(len(ids), prompt.prefix)[None]
            inputs["attention_mask"] = np.array([[prompt.prefix]])
        with paddle.no_grad():
            logits = model(**{name: paddle.to_tensor(value) for name, value in inputs.items()})
        logits = logits[0] if isinstance(logits, tuple) else logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_batch_gives_the_tokens_of_its_single_prompts(network):
    batch = prompts(network[1])
    together = decoded(network, batch)
    assert together == [decoded(network, [prompt])[0] for prompt in batch]
    assert len({tuple(tokens) for tokens in together}) == len(batch)
    assert together[0] == without_cache(network, batch[0])


def test_beam_search_of_a_batch_gives_the_texts_of_its_single_prompts(network):
    """Rows of the cache are reordered between the steps."""
    strategy, batch = DecodeStrategy(num_beams=3, repetition_penalty=1.3), prompts(network[1])
    together = decoded(network, batch, strategy, stop_ids=(50, 60))
    assert together == [decoded(network, [prompt], strategy, stop_ids=(50, 60))[0] for prompt in batch]


# PaddleNLP's generate takes ChatGLM-6B's mask and positions only from its tokenizer.
@pytest.mark.parametrize("network", [family for family in WRITERS if family != "chatglm"], indirect=True)
def test_greedy_tokens_equal_those_of_paddlenlp(network):
    """Greedy decoding of one prompt, where PaddleNLP's generation is right (GLM: without its cache)."""
    import paddle

    model, prompt = network[0], prompts(network[1])[0]
    ids = paddle.to_tensor([prompt.ids])
    found, _ = model.generate(
        input_ids=ids,
        attention_mask=paddle.ones_like(ids),
        max_new_tokens=STEPS,
        decode_strategy="greedy_search",
        eos_token_id=-1,
        pad_token_id=0,
    )
    assert decoded(network, [prompt])[0] == found.tolist()[0]


@pytest.mark.parametrize("family", ["llama", "chatglm"])
def test_generator_answers_texts(tmp_path, pieces, family):
    from paddle_llm.config.layout import Layout
    from paddle_llm.generation.api import continuation
    from paddle_llm.generation.network import load_network
    from paddle_llm.generation.prompts import encode_text
    from paddle_llm.generation.texts import Generator

    loaded = load_network(write_folder(family, pieces, tmp_path), "cpu", Layout())
    generator = Generator(loaded.model, loaded.codec, DecodeOptions(loaded.family, loaded.stop_ids), 10)
    texts = ["The class statement defines", "An object"]
    answers = generator([encode_text(loaded.codec, text) for text in texts], range(2), 2)
    for text, answer in zip(texts, answers, strict=True):
        assert continuation(text, answer, loaded.codec)
