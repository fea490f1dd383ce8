"""The `openai` package talks to a real server: models, completions, chat, streams and errors."""

from __future__ import annotations

import openai
import pytest

from tests.serving.running_server import TEXT


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="not needed", max_retries=0, timeout=120) as found:
        yield found


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "alias"]
    assert client.models.retrieve("tiny").object == "model"


def test_completions(client):
    asked = {"model": "tiny", "prompt": TEXT, "temperature": 0, "max_tokens": 12}
    whole = client.completions.create(**asked, logprobs=2)
    assert whole.usage.completion_tokens == 12 and whole.choices[0].finish_reason == "length"
    assert len(whole.choices[0].logprobs.token_logprobs) == 12 and whole._request_id
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(pieces) == whole.choices[0].text and len(pieces) > 5
    several = client.completions.create(**asked | {"temperature": 1}, n=2, seed=1, extra_body={"top_k": 5})
    assert len({choice.text for choice in several.choices}) == 2


def test_chat(client):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
    whole = client.chat.completions.create(**asked, max_tokens=12, logprobs=True, top_logprobs=2)
    assert whole.usage.completion_tokens == 12 and len(whole.choices[0].logprobs.content) == 12
    usage = {"include_usage": True}
    chunks = list(client.chat.completions.create(**asked, max_tokens=12, stream=True, stream_options=usage))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content and chunks[-1].usage == whole.usage
    stopped = client.chat.completions.create(**asked, max_completion_tokens=12, stop=[text[4:6]])
    assert stopped.choices[0].message.content == text[: text.index(text[4:6])]
    assert stopped.choices[0].finish_reason == "stop"


def test_errors(client):
    with pytest.raises(openai.BadRequestError, match="The field nonsense is unknown") as refusal:
        client.completions.create(model="tiny", prompt="a", extra_body={"nonsense": 1})
    assert refusal.value.param == "nonsense" and refusal.value.code == "unknown_parameter"
    with pytest.raises(openai.NotFoundError, match="gpt"):
        client.completions.create(model="gpt", prompt="a")
