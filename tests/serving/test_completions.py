"""`/v1/completions` of a real server: the texts of `paddle-llm generate`, whole and streamed, and every field."""

from __future__ import annotations

import pytest

from paddle_llm import generate
from paddle_llm.data.tokenizers.text_codec import open_codec
from tests.serving.running_server import TEXT


@pytest.fixture(scope="module")
def offline(llama) -> str:
    return generate(llama, TEXT, max_new_tokens=24, device="cpu")[0]


def text_of(response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


def test_a_prompt_is_continued_as_by_generate(server, offline):
    response = server.complete(max_tokens=24)
    assert text_of(response) == offline
    body = response.json()
    assert body["object"] == "text_completion" and body["model"] == "tiny" and body["id"].startswith("cmpl-")
    assert body["choices"][0] | {"text": ""} == {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
    usage = body["usage"]
    assert usage["completion_tokens"] == 24 and usage["total_tokens"] == 24 + usage["prompt_tokens"]
    assert server.complete(model="alias", max_tokens=24).json()["choices"] == body["choices"]


def test_a_stream_has_the_same_text(server, offline):
    with server.stream(prompt=TEXT, max_tokens=24, stream_options={"include_usage": True}) as stream:
        *events, last = stream
    assert "".join(event["choices"][0]["text"] for event in events) == offline
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["length"]
    assert len(events) > 10 and last["choices"] == [] and last["usage"]["completion_tokens"] == 24
    assert {event["id"] for event in (*events, last)} == {last["id"]}


def test_token_ids_are_used_as_they_are(server, llama, offline):
    codec = open_codec(str(llama))
    ids = [*codec.prefix_ids, *codec.encode(TEXT)]
    assert text_of(server.complete(prompt=ids, max_tokens=24)) == offline
    other = server.complete(prompt=[ids, codec.encode(TEXT)], max_tokens=24).json()
    assert other["choices"][0]["text"] == offline != other["choices"][1]["text"]
    assert other["usage"]["prompt_tokens"] == 2 * len(ids) - 1
    for wrong, message in (([401], "outside the vocabulary. Use 0 to 400"), ([-1], "prompt"), ([], "prompt")):
        response = server.complete(prompt=wrong)
        assert response.status_code == 400 and message in response.json()["error"]["message"]


def test_a_seed_gives_the_texts_of_generate(server, llama):
    prompts = [TEXT, "An object"]
    fields = {"temperature": 0.9, "top_p": 0.8, "top_k": 40, "repetition_penalty": 1.1, "seed": 7}
    expected = generate(llama, prompts, max_new_tokens=12, device="cpu", **fields)
    choices = server.complete(prompt=prompts, max_tokens=12, **fields).json()["choices"]
    assert [choice["text"] for choice in choices] == expected
    assert [choice["index"] for choice in choices] == [0, 1]


def test_n_gives_several_texts(server):
    body = server.complete(n=3, temperature=1, seed=5, max_tokens=10).json()
    texts = [choice["text"] for choice in body["choices"]]
    assert len(set(texts)) == 3 and body["usage"]["completion_tokens"] == 30
    assert server.complete(n=3, temperature=1, seed=5, max_tokens=10).json()["choices"] == body["choices"]
    with server.stream(prompt=TEXT, n=3, temperature=1, seed=5, max_tokens=10) as stream:
        streamed = ["", "", ""]
        for event in stream:
            streamed[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert streamed == texts
    without = {text_of(server.complete(temperature=1, max_tokens=10)) for _ in range(4)}
    assert len(without) > 1  # each request without a seed draws one


def test_the_default_is_sixteen_tokens(server):
    assert server.complete().json()["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("length", [1, 4])
def test_a_text_ends_before_a_stop_string(server, offline, length):
    at = len(offline) // 2
    stop = offline[at : at + length]
    expected = offline[: offline.index(stop)]
    response = server.complete(max_tokens=24, stop=["<never>", stop])
    assert text_of(response) == expected
    assert response.json()["choices"][0]["finish_reason"] == "stop"
    assert response.json()["usage"]["completion_tokens"] < 24
    with server.stream(prompt=TEXT, max_tokens=24, stop=stop) as stream:
        events = list(stream)
    assert "".join(event["choices"][0]["text"] for event in events) == expected
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_text_ends_at_a_stop_id(server, llama, offline):
    detail = server.complete(max_tokens=24, logprobs=0).json()["choices"][0]["logprobs"]
    codec = open_codec(str(llama))
    known = [number for number in range(401) if codec.show([number]) == detail["tokens"][6]]
    response = server.complete(max_tokens=24, stop_token_ids=known)
    first = detail["tokens"].index(detail["tokens"][6])
    assert response.json()["usage"]["completion_tokens"] == first
    assert response.json()["choices"][0]["finish_reason"] == "stop" and offline.startswith(text_of(response))


def test_log_probabilities(server):
    choice = server.complete(max_tokens=8, logprobs=2).json()["choices"][0]
    found = choice["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["top_logprobs"]) == 8
    for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert 1 <= len(top) <= 2 and top[token] == logprob == max(top.values()) < 0
    assert found["text_offset"][0] == len(TEXT)
    assert found["text_offset"][3] == len(TEXT) + sum(map(len, found["tokens"][:3]))
    with server.stream(prompt=TEXT, max_tokens=8, logprobs=2) as stream:
        streamed = [event["choices"][0]["logprobs"] for event in stream]
    for name in ("tokens", "text_offset"):
        assert [value for event in streamed for value in event[name]] == found[name]
    scores = [value for event in streamed for value in event["token_logprobs"]]
    assert scores == pytest.approx(found["token_logprobs"], abs=1e-4)


def test_the_prompt_is_echoed_and_scored_as_lm_eval_does(server, llama):
    codec = open_codec(str(llama))
    ids = [*codec.prefix_ids, *codec.encode(TEXT)]
    body = server.complete(prompt=ids, max_tokens=1, logprobs=1, echo=True).json()
    (choice,) = body["choices"]
    found = choice["logprobs"]
    assert choice["text"].startswith(codec.decode(ids)) and body["usage"]["completion_tokens"] == 1
    assert len(found["token_logprobs"]) == len(ids) + 1
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None and found["text_offset"][0] == 0
    assert all(value < 0 for value in found["token_logprobs"][1:])
    # Each score is that of the token as the first new one after the tokens before it.
    for at in (1, 3, len(ids) - 1):
        alone = server.complete(prompt=ids[:at], max_tokens=1, logprobs=20).json()["choices"][0]["logprobs"]
        assert max(found["top_logprobs"][at].values()) == pytest.approx(alone["token_logprobs"][0], abs=1e-4)
    scored = server.complete(prompt=ids, max_tokens=0, logprobs=1, echo=True).json()["choices"][0]
    assert scored["logprobs"]["token_logprobs"] == pytest.approx(found["token_logprobs"][:-1], abs=1e-4)
    with server.stream(prompt=TEXT, max_tokens=4, echo=True) as stream:
        events = list(stream)
    assert events[0]["choices"][0]["text"] == TEXT
    whole = text_of(server.complete(max_tokens=4, echo=True))
    assert "".join(event["choices"][0]["text"] for event in events) == whole and whole.startswith(TEXT)
