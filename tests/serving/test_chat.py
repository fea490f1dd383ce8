"""`/v1/chat/completions` of a real server: the answers of `paddle-llm generate` with a template."""

from __future__ import annotations

import pytest

from paddle_llm import generate

QUESTION = "What is an object?"


def answer_of(response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def offline(llama) -> str:
    return generate(llama, QUESTION, chat_template="auto", max_new_tokens=20, device="cpu")[0]


def test_a_question_is_answered_as_by_generate(server, offline):
    response = server.chat(QUESTION, max_tokens=20)
    assert answer_of(response) == offline
    body = response.json()
    assert body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-")
    assert body["choices"][0]["message"]["role"] == "assistant" and body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 20
    assert answer_of(server.chat(QUESTION, max_completion_tokens=20)) == offline
    assert any("prompt template: default" in line for line in server.log)


def test_a_stream_has_the_same_answer(server, offline):
    messages = [{"role": "user", "content": [{"type": "text", "text": part} for part in ("What is", " an object?")]}]
    usage = {"include_usage": True}
    with server.stream("/v1/chat/completions", messages=messages, max_tokens=20, stream_options=usage) as stream:
        first, *events, last = stream
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == offline
    assert events[-1]["choices"][0]["finish_reason"] == "length" and last["usage"]["completion_tokens"] == 20
    assert {event["object"] for event in (first, *events, last)} == {"chat.completion.chunk"}


def test_a_conversation_with_system_message_and_rounds(server, llama):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A model."},
        {"role": "user", "content": QUESTION},
    ]
    body = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 12}
    found = server.post("/v1/chat/completions", body)
    assert found.json()["usage"]["prompt_tokens"] > server.chat(QUESTION, max_tokens=1).json()["usage"]["prompt_tokens"]
    for changed in (messages[1:], messages[:1] + messages[3:]):
        assert answer_of(server.post("/v1/chat/completions", body | {"messages": changed})) != answer_of(found)


def test_without_a_limit_the_answer_fills_the_positions(server):
    usage = server.chat(QUESTION).json()["usage"]
    assert usage["total_tokens"] == 256 or usage["completion_tokens"] < 256 - usage["prompt_tokens"]


def test_n_and_log_probabilities(server):
    body = server.chat(QUESTION, n=2, temperature=1, seed=3, max_tokens=5, logprobs=True, top_logprobs=3).json()
    assert len({choice["message"]["content"] for choice in body["choices"]}) == 2
    for choice in body["choices"]:
        assert len(choice["logprobs"]["content"]) == 5
        for token in choice["logprobs"]["content"]:
            assert len(token["top_logprobs"]) == 3 and token["logprob"] < 0
            assert token["bytes"] is None or bytes(token["bytes"]).decode() == token["token"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "not a question"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "not the first message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a", "name": "me"}]}, "name is unknown"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "role"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "same meaning"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"tools": [{"type": "function"}]}, "The field tools is not supported"),
        ({"echo": True}, "The field echo is unknown"),
    ],
)
def test_what_is_not_supported_is_refused(server, fields, message):
    response = server.chat(QUESTION, **fields)
    assert response.status_code == 400 and message in response.json()["error"]["message"], response.text
