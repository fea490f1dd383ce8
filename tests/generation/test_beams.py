"""Beam search, compared with an exhaustive search over a vocabulary of five and with transformers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from paddle_llm.generation.options import DecodeOptions, DecodeStrategy
from paddle_llm.models.prompt import Prompt
from tests.helpers.models.networks import build
from tests.helpers.models.tiny import write_llama

VOCABULARY, LENGTH, ENDS = 5, 3, (1, 3)
PROMPTS = [[2, 4, 0, 2], [4, 2]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("five")
    write_llama(folder, vocab_size=VOCABULARY, num_hidden_layers=2, initializer_range=0.3)
    model = build(folder)
    model.eval()
    return model


def all_texts() -> list[tuple[int, ...]]:
    """Return every text of at most LENGTH tokens with an end token only at its end."""
    words = [token for token in range(VOCABULARY) if token not in ENDS]
    texts = []
    for length in range(1, LENGTH + 1):
        last = range(VOCABULARY) if length == LENGTH else ENDS
        texts += [(*head, end) for head in itertools.product(words, repeat=length - 1) for end in last]
    return texts


def worths(model, prompt: list[int], length_penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """Return (log-probability / length ** penalty, text) of every text, best first, computed without a cache."""
    import paddle
    import paddle.nn.functional as F

    found = []
    for text in all_texts():
        ids = paddle.to_tensor([[*prompt, *text]])
        with paddle.no_grad():
            scores = F.log_softmax(model(ids)[0][0], axis=-1).numpy()
        total = sum(scores[len(prompt) + place - 1, token] for place, token in enumerate(text))
        found.append((float(total) / len(text) ** length_penalty, text))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
def test_with_a_beam_per_text_the_best_text_is_found(model, length_penalty):
    from paddle_llm.generation.decoding.decode import decode

    strategy = DecodeStrategy(num_beams=VOCABULARY**LENGTH, length_penalty=length_penalty)
    found = decode(model, [Prompt(ids) for ids in PROMPTS], [LENGTH] * 2, DecodeOptions("llama", ENDS, strategy))
    for ids, text in zip(PROMPTS, found, strict=True):
        (best, expected), (second, _) = worths(model, ids, length_penalty)[:2]
        assert best - second > 1e-4  # rounding does not decide
        assert text == [token for token in expected if token not in ENDS]


@pytest.mark.hf
def test_texts_equal_those_of_transformers(tmp_path):
    """Few beams over many tokens, so that texts are pruned and searches end early."""
    import torch
    import transformers

    from paddle_llm.generation.decoding.decode import decode

    write_llama(tmp_path, vocab_size=40, num_hidden_layers=2, initializer_range=0.25)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more wait for each other longer than they compute
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(tmp_path)).eval()
    theirs.save_pretrained(tmp_path)
    ours = build(tmp_path, load=True)
    ours.eval()
    many = [*range(2, 9)]
    prompts = [np.random.default_rng(seed).integers(10, 40, 4 + seed % 5).tolist() for seed in range(10)]
    for changes in ({}, {"length_penalty": 0.3}, {"length_penalty": -1.0}, {"num_beams": 7}):
        options = {"num_beams": 4, **changes}
        found = decode(
            ours, [Prompt(ids) for ids in prompts], [12] * 10, DecodeOptions("llama", many, DecodeStrategy(**options))
        )
        assert sum(len(text) < 12 for text in found) > 3
        options |= {"max_new_tokens": 12, "do_sample": False, "eos_token_id": many, "pad_token_id": 0}
        for ids, text in zip(prompts, found, strict=True):
            with torch.no_grad():
                whole = theirs.generate(torch.tensor([ids]), **options)[0].tolist()[len(ids) :]
            assert text == list(itertools.takewhile(lambda token: token not in many, whole))
