"""The engine generates the tokens of `paddle-llm generate`, whatever else it decodes, within its memory and fairly."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paddle_llm.generation.options import DecodeStrategy
from paddle_llm.models.prompt import Prompt
from paddle_llm.serving.engine.texts import Finished, Started, TextRequest
from tests.export.static_folders import export_static
from tests.helpers.models.folders import write_folder
from tests.helpers.models.networks import WRITERS, build
from tests.serving.references import Collected, assert_same, decoded, greedy

# (length of the prompt, new tokens)
TEXTS = ((7, 20), (2, 33), (40, 5), (19, 1), (11, 26), (1, 12), (30, 18))


def prompt_of(length: int, family: str = "llama") -> Prompt:
    ids = np.random.default_rng(length).integers(10, 390, length).tolist()
    return Prompt([*ids, 398, 399], length + 1) if family == "chatglm" else Prompt(ids)


@pytest.fixture(scope="module")
def network(llama):
    model = build(llama, load=True)
    model.eval()
    return model


@pytest.fixture(scope="module")
def static(program):
    from paddle_llm.generation.static.program import StaticProgram

    return StaticProgram(program)


def open_engine(static, tokens: int = 400, **options):
    from paddle_llm.serving.engine.engine import Engine

    return Engine(static, tokens, **{"max_texts": 4, "prompt_chunk": 6, **options})


# ---- the tokens of every family -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", WRITERS)
def test_texts_that_join_and_leave_have_the_tokens_of_generate(family, pieces, tmp_path):
    from paddle_llm.generation.static.program import StaticProgram

    # The texts are longer than the attention window of the tiny Mistral, which a static program does not have.
    overrides = {"sliding_window": None} if family == "mistral" else {}
    folder = write_folder(family, pieces, tmp_path / family, **overrides)
    model = build(folder, load=True)
    model.eval()
    engine = open_engine(StaticProgram(export_static(folder, tmp_path / "program")), tokens=3 * 62)
    found, requests = Collected(), []
    for number, (length, count) in enumerate(TEXTS):
        requests.append(TextRequest(str(number), prompt_of(length, family), count))
        engine.add(requests[-1])
        found.run(engine, steps=4)
    found.run(engine)
    for request in requests:
        reference = greedy(model, family, request.prompt, request.max_new_tokens)
        assert_same(found.tokens(request.key), reference)
        assert found.end(request.key).reason == "length"
    assert len({tuple(found.tokens(request.key)[:5]) for request in requests}) > 4


def test_a_text_alone_has_the_same_tokens(static, network):
    engine = open_engine(static)
    for length, count in TEXTS[:3]:
        engine.add(TextRequest("alone", prompt_of(length), count))
        found = Collected().run(engine)
        assert_same(found.tokens("alone"), greedy(network, "llama", prompt_of(length), count))


@pytest.mark.slow
def test_many_texts_at_random_times_have_the_tokens_of_generate(static, network):
    random = np.random.default_rng(0)
    engine = open_engine(static, tokens=1500, max_texts=16, prompt_chunk=16)
    found, requests = Collected(), []
    for number in range(120):
        length, count = int(random.integers(1, 120)), int(random.integers(1, 120))
        requests.append(TextRequest(str(number), Prompt(random.integers(10, 390, length).tolist()), count))
        engine.add(requests[-1])
        found.run(engine, steps=int(random.integers(0, 12)))
        if number % 10 == 3:
            engine.cancel(str(number - 1))
    found.run(engine)
    whole = [request for request in requests if found.end(request.key).reason == "length"]
    assert len(whole) >= 108
    for request in whole:
        reference = greedy(network, "llama", request.prompt, request.max_new_tokens)
        assert_same(found.tokens(request.key), reference)


# ---- settings that differ between texts -----------------------------------------------------------------------------

STRATEGIES = (
    DecodeStrategy(),
    DecodeStrategy(temperature=1.3, seed=3),
    DecodeStrategy(temperature=1.3, seed=4),
    DecodeStrategy(top_k=5, seed=4),
    DecodeStrategy(temperature=0.9, top_p=0.8, seed=5),
    DecodeStrategy(repetition_penalty=1.4),
    DecodeStrategy(repetition_penalty=1.2, top_p=0.9, top_k=20, seed=6),
)


def test_each_text_has_its_own_strategy_and_random_numbers(static, network):
    engine = open_engine(static, tokens=2000, max_texts=20)
    for number, strategy in enumerate(STRATEGIES):
        for stream in (0, 3):
            engine.add(TextRequest(f"{number}-{stream}", prompt_of(9), 16, strategy, stream))
    found = Collected().run(engine)
    for number, strategy in enumerate(STRATEGIES):
        for stream in (0, 3):
            tokens = found.tokens(f"{number}-{stream}")
            assert tokens == decoded(network, "llama", prompt_of(9), 16, strategy, stream), strategy
    assert found.tokens("1-0") != found.tokens("1-3") and found.tokens("1-0") != found.tokens("2-0")


def test_a_text_ends_at_any_of_its_stop_tokens(static, network):
    free = greedy(network, "llama", prompt_of(7), 20).tokens
    engine = open_engine(static)
    stops = {"third": [free[3]], "both": [free[5], free[4]], "other": [free[2] + 1]}
    for key, ids in stops.items():
        engine.add(TextRequest(key, prompt_of(7), 20, stop_ids=ids))
    found = Collected().run(engine)
    for key, ids in stops.items():
        first = min((free.index(number) for number in ids if number in free), default=20)
        assert found.tokens(key) == free[:first]
        assert found.end(key).reason == ("stop" if first < 20 else "length")


def test_log_probabilities_are_those_of_the_network(static, network):
    reference = greedy(network, "llama", prompt_of(7), 6)
    engine = open_engine(static)
    engine.add(TextRequest("with", prompt_of(7), 6, DecodeStrategy(repetition_penalty=1.0), top_logprobs=3))
    engine.add(TextRequest("chosen", prompt_of(7), 6, top_logprobs=0))
    engine.add(TextRequest("without", prompt_of(7), 6))
    found = Collected().run(engine)
    shifted = reference.logits.astype(np.float64)
    expected = shifted - np.log(np.exp(shifted - shifted.max(-1, keepdims=True)).sum(-1, keepdims=True))
    expected -= shifted.max(-1, keepdims=True)
    for row, event in enumerate(found.added("with")):
        best = np.argsort(-expected[row])[:3]
        assert [number for number, _ in event.top] == best.tolist() and event.token == best[0]
        np.testing.assert_allclose([value for _, value in event.top], expected[row][best], atol=1e-4)
        assert event.logprob == event.top[0][1]
    chosen = [event.logprob for event in found.added("chosen")]
    assert chosen == pytest.approx([event.logprob for event in found.added("with")], abs=1e-4)
    assert all(event.logprob is None and not event.top for event in found.added("without"))


def test_the_tokens_of_a_prompt_are_scored(static, network):
    import paddle

    prompt = prompt_of(12)
    engine = open_engine(static)
    engine.add(TextRequest("other", prompt_of(7), 30))
    engine.add(TextRequest("scored", prompt, 2, top_logprobs=1, scores_prompt=True))
    engine.add(TextRequest("only", prompt, 0, top_logprobs=0, scores_prompt=True))
    found = Collected().run(engine)
    with paddle.no_grad():
        logits = network(input_ids=paddle.to_tensor([list(prompt.ids)]))
    logits = logits[0] if isinstance(logits, tuple) else logits
    expected = paddle.nn.functional.log_softmax(logits[0].astype("float64"), axis=-1).numpy()
    for key, count in (("scored", 2), ("only", 0)):
        events = found.added(key)
        assert [event.token for event in events[:12]] == list(prompt.ids)
        assert [event.of_prompt for event in events] == [True] * 12 + [False] * count
        assert events[0].logprob is None
        scores = [expected[at - 1][prompt.ids[at]] for at in range(1, 12)]
        np.testing.assert_allclose([event.logprob for event in events[1:12]], scores, atol=1e-4)
    assert [event.top[0][0] for event in found.added("scored")[1:12]] == expected[:11].argmax(-1).tolist()
    assert_same(found.tokens("scored"), greedy(network, "llama", prompt, 2))
    assert found.end("only").reason == "length"


# ---- scheduling -----------------------------------------------------------------------------------------------------


def test_a_long_prompt_does_not_stop_other_texts(static):
    engine = open_engine(static, tokens=2000, prompt_chunk=10)
    engine.add(TextRequest("short", prompt_of(5), 60))
    found = Collected().run(engine, steps=2)
    engine.add(TextRequest("long", prompt_of(150), 5))
    before = len(found.tokens("short"))
    found.run(engine, steps=10)
    assert len(found.tokens("short")) == before + 10 and found.tokens("long") == []
    found.run(engine)
    assert len(found.tokens("long")) == 5


def test_several_short_prompts_are_read_in_one_step(static):
    engine = open_engine(static, prompt_chunk=30)
    for number in range(3):
        engine.add(TextRequest(str(number), prompt_of(8), 4))
    events = engine.step()
    assert [event.key for event in events if isinstance(event, Started)] == ["0", "1", "2"]


def test_texts_beyond_the_budget_wait_in_order(static):
    engine = open_engine(static, tokens=100, max_texts=8)
    for key, length, count in (("a", 10, 40), ("b", 10, 40), ("c", 10, 40), ("d", 1, 1)):
        engine.add(TextRequest(key, prompt_of(length), count))
    found = Collected().run(engine, steps=10)
    assert engine.state.running == 2 and engine.state.waiting == 2  # two rows of 50 tokens
    assert 0 < engine.state.cache_use <= 1
    found.run(engine)
    started = [event.key for event in found.events if isinstance(event, Started)]
    assert started == ["a", "b", "c", "d"]
    assert engine.state.running == engine.state.waiting == 0 and engine.state.cache_use == 0


def test_a_cancelled_text_frees_its_memory_before_the_next_step(static, network):
    engine = open_engine(static, tokens=2 * 60, max_texts=8)
    for key in ("first", "second", "queued", "last"):
        engine.add(TextRequest(key, prompt_of(20), 30))
    found = Collected().run(engine, steps=8)
    assert engine.state.running == 2
    for key in ("first", "queued", "unknown"):
        engine.cancel(key)
    assert engine.state.running == 1 and engine.state.waiting == 1
    found.run(engine, steps=1)
    assert engine.state.running == 2 and engine.state.waiting == 0  # "last" has begun
    engine.cancel("last")  # while its prompt is read
    assert engine.state.running == 1
    found.run(engine)
    reasons = [found.end(key).reason for key in ("first", "second", "queued", "last")]
    assert reasons == ["cancelled", "length", "cancelled", "cancelled"]
    assert_same(found.tokens("second"), greedy(network, "llama", prompt_of(20), 30))


def test_texts_that_can_never_be_computed_are_refused(static):
    engine = open_engine(static, tokens=100)
    for request in (
        TextRequest("long", prompt_of(60), 41),
        TextRequest("empty", Prompt([]), 4),
        TextRequest("nothing", prompt_of(4), 0),
        TextRequest("prefix", Prompt([5, 6, 7], 2), 4, scores_prompt=True),
    ):
        with pytest.raises(ValueError):
            engine.add(request)
    engine.add(TextRequest("whole", prompt_of(60), 40))
    assert len(Collected().run(engine).tokens("whole")) == 40


def test_logits_that_are_not_finite_end_only_their_text(pieces, tmp_path, llama):
    from paddle_llm.generation.static.program import StaticProgram

    broken, bad = write_folder("llama", pieces, tmp_path / "model", num_hidden_layers=1), 77
    tensors = load_file(broken / "model.safetensors")
    tensors["model.embed_tokens.weight"][bad] = np.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    static = StaticProgram(export_static(broken, tmp_path / "program"))
    good = Prompt([number for number in prompt_of(9).ids if number != bad])
    engine = open_engine(static)
    engine.add(TextRequest("alone", good, 12, stop_ids=[bad]))
    alone = Collected().run(engine).tokens("alone")
    engine.add(TextRequest("before", good, 12, stop_ids=[bad]))
    engine.add(TextRequest("bad", Prompt([5, bad, 6]), 12))
    engine.add(TextRequest("after", good, 12, stop_ids=[bad]))
    found = Collected().run(engine)
    assert found.tokens("before") == found.tokens("after") == alone
    end = found.end("bad")
    assert end == Finished(
        "bad", "error", "The logits of the model are not finite numbers, so that no token can be chosen."
    )
