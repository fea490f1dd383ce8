"""Every family computes the same with flash attention as without it, and calls Paddle's kernels as they require."""

from __future__ import annotations

import itertools

import numpy as np
import paddle
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.config.methods import method_problems
from paddle_llm.data.samples.dataset import prefix_positions
from paddle_llm.families import FAMILIES
from paddle_llm.models.incremental import IncrementalNetwork
from paddle_llm.models.prompt import Prompt
from tests.helpers.gpu.kernels import Kernels, network, on_fake_gpu, without_cpu_kernels
from tests.helpers.models.adapters import METHODS, attached, set_trained
from tests.helpers.models.networks import WRITERS, batch

CASES = ["plain", "left-padded", "decode", "prefix", "prefix decode", "packed", "prefix packed"]
PREFIX_LM = ("chatglm", "glm")
CARDS = {"new": {}, "old": {"capability": (7, 5)}, "32 bits": {"half": False}}
FLASH_FAMILIES = ("llama", "qwen2", "chatglm", "chatglm_v2", "bloom", "mistral")
FLASHMASK_FAMILIES = ("llama", "qwen2", "chatglm_v2", "opt")
CAUSAL_FAMILIES = ("llama", "qwen2", "chatglm_v2")


@pytest.fixture(scope="module", autouse=True)
def _as_on_a_gpu():
    with without_cpu_kernels():
        yield


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """network(family, flash, prefix) -> a network in evaluation mode; each is built once."""
    built = {}

    def get(family: str, flash: bool, prefix: bool):
        key = (family, flash, prefix)
        if key not in built:
            model = network(tmp_path_factory.mktemp(family), family, flash=flash)
            if prefix:
                model = attached(model, METHODS["prefix"])
                set_trained(model)
            model.eval()
            built[key] = model
        return built[key]

    return get


def results(model, family: str, case: str) -> dict[str, np.ndarray]:
    """Return loss and gradients of a training step, or logits of prompts of unequal lengths and of their continuation."""
    if case.endswith("packed"):
        return step(model, packed_batch(family))
    if case in ("plain", "prefix"):
        return step(model, batch(family))
    return decoded(model, family, 0 if case == "left-padded" else 2)


def step(model, inputs) -> dict[str, np.ndarray]:
    model.clear_gradients()
    loss = model(**inputs)[0]
    loss.backward()
    gradients = {name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None}
    return {"loss": loss.numpy(), **gradients}


def packed_batch(family: str) -> dict[str, paddle.Tensor]:
    """Return two rows: samples of 7 and 9 tokens; samples of 5 and 4 tokens with padding."""
    lengths, prefixes = np.array([[7, 9], [5, 4]]), np.array([[3, 5], [2, 2]])
    tokens = np.random.default_rng(1).integers(4, 120, (2, 17))
    labels = np.where(np.arange(16) < lengths.sum(1)[:, None], tokens[:, 1:], -100)
    inputs = {"input_ids": tokens[:, :-1], "labels": labels, "segment_lengths": lengths}
    if family in PREFIX_LM:
        rows = [
            [prefix_positions(*pair) for pair in zip(*row, strict=True)] for row in zip(lengths, prefixes, strict=True)
        ]
        rows = [np.concatenate(row, axis=-1) for row in rows]
        inputs["position_ids"] = np.stack([np.pad(row, ((0, 0), (0, 16 - row.shape[1]))) for row in rows])
        inputs["prefix_lengths"] = prefixes
    return {name: paddle.to_tensor(value) for name, value in inputs.items()}


def decoded(model, family: str, tokens: int) -> dict[str, np.ndarray]:
    rows = [np.random.default_rng(length).integers(5, 100, length).tolist() for length in (7, 3)]
    prompts = [Prompt([*row, 125, 126], len(row) + 1) if family == "chatglm" else Prompt(row) for row in rows]
    with paddle.no_grad():
        reader = IncrementalNetwork(model, family, prompts, tokens)
        logits = [reader.read_prompts(), *(reader.read(paddle.to_tensor([17 + n, 30])) for n in range(tokens))]
    return {str(number): one.numpy() for number, one in enumerate(logits)}


def refused(family: str, case: str) -> bool:
    if case != "prefix packed" or FAMILIES[family].capabilities.packed_prefix:
        return False
    assert any(
        "--zero_padding is not supported" in line for line in method_problems("prefix", Layout(), family, packed=True)
    )
    return True


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", WRITERS)
def test_flash_attention_computes_the_same(networks, family, case):
    if refused(family, case):
        return
    prefix = "prefix" in case
    expected = results(networks(family, False, prefix), family, case)
    for flash, (card, features) in itertools.product((True, False), CARDS.items()):
        kernels = Kernels(**features)
        with on_fake_gpu(kernels):
            found = results(networks(family, flash, prefix), family, case)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(
                value, expected[name], atol=2e-5 * scale + 1e-7, err_msg=f"{name} {flash} {card}"
            )
        assert set(kernels.calls) == kernels_of(family, case, flash, card)


def kernels_of(family: str, case: str, flash: bool, card: str) -> set[str]:
    """Return the names of the kernels that compute a case."""
    if case == "packed" and family in FLASHMASK_FAMILIES:
        return {"flashmask"} if card == "new" else set()
    if case == "packed" and family == "bloom":
        return {"masked"} if card == "new" else set()
    if not flash or family not in FLASH_FAMILIES:
        return set()
    return {"causal"} if case == "plain" and family in CAUSAL_FAMILIES else {"masked"}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_whole_rows_are_computed_without_a_mask(networks, family, monkeypatch):
    """PaddleNLP builds [B, 1, S, S] three times, compares it with its triangle, and drops it."""
    model = networks(family, True, False)
    base = getattr(model, model.base_model_prefix)
    monkeypatch.setattr(type(base), "_prepare_decoder_attention_mask", staticmethod(forbidden))
    with on_fake_gpu(Kernels()):
        for inputs in (batch(family), packed_batch(family)):
            model(**inputs)[0].backward()


# Not ChatGLM-6B: PaddleNLP compares the largest position with the length of its rotary table (chatglm/modeling.py:120).
@pytest.mark.parametrize("family", sorted({*FLASH_FAMILIES} - {"chatglm"}))
def test_no_step_waits_for_a_copy_from_the_device(networks, family):
    model = networks(family, True, False)
    with on_fake_gpu(Kernels()), pytest.MonkeyPatch.context() as patch:  # undone before the kernels are
        model(**packed_batch(family))  # the slopes of ALiBi are copied once
        for name in ("scaled_dot_product_attention", "flashmask_attention"):  # the checks of the spy copy
            patch.setattr(paddle.nn.functional, name, lambda query, *others, **named: query)
        for name in ("item", "numpy", "tolist", "__float__", "__bool__", "__int__"):
            patch.setattr(paddle.Tensor, name, forbidden)
        for inputs in (batch(family), packed_batch(family)):
            model(**inputs)[0].backward()


def forbidden(*_: object) -> None:
    raise AssertionError("a mask is made, or a copy from the device waited for")
