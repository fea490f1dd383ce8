"""Requests that are wrong, and the endpoints besides generation, of a real server."""

from __future__ import annotations

import json

import httpx
import pytest


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temprature": 1}, "temprature", "The field temprature is unknown"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "The field logit_bias is not supported"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"guided_json": {}}, "guided_json", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": True}, "n", "valid integer"),
        ({"seed": 1 << 70}, "seed", "less than"),
        ({"max_tokens": 0}, "max_tokens", "needs echo"),
        ({"max_tokens": 10_000}, "max_tokens", "Use max_tokens = 2"),
        ({"stop": [""]}, "stop", "at least 1 character"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"prompt": None}, "prompt", "prompt"),
        ({"prompt": ""}, "prompt", "The prompt is empty"),
        ({"prompt": []}, "prompt", "prompt"),
        ({"prompt": {"text": "a"}}, "prompt", "prompt"),
        ({"prompt": "word " * 400}, "prompt", "is served with 256 tokens"),
        ({"prompt": "x" * 20_000}, "prompt", "has 20000 characters"),
        ({"prompt": "\ud800"}, "prompt", "not UTF-8 text"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_field_is_named(server, fields, param, message):
    content = json.dumps({"model": server.name, "prompt": "An object", "temperature": 0, **fields})
    response = httpx.post(f"{server.url}/v1/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert message in error["message"] and error["param"] == param and error["type"] == "invalid_request_error"


def test_fields_without_an_effect_are_accepted(server):
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": None,
        "best_of": 1,
        "user": "",
        "suffix": None,
    }
    assert server.complete(max_tokens=1, **neutral).status_code == 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "The body is not JSON"),
        (b"", "missing"),
        (b"[]", "body"),
        (b"\xff\xfe", "body"),
        (b"[" * 100_000, "body"),
        (b'{"model": "tiny", "prompt": NaN}', "prompt"),
        (b'{"prompt": "a"}', "The field model is missing"),
    ],
)
def test_a_malformed_body_is_refused(server, content, message):
    response = httpx.post(f"{server.url}/v1/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400 and message in response.json()["error"]["message"], response.text


def test_an_unknown_model_path_or_method(server):
    response = server.complete(model="gpt-4")
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
    assert "Use tiny, alias." in response.json()["error"]["message"]
    assert server.get("/v1/nothing").status_code == 404
    assert server.get("/v1/completions").status_code == 405
    assert server.get("/docs").status_code == 404  # its page loads scripts from other servers


def test_the_names_of_the_model_are_listed(server):
    listed = server.get("/v1/models").json()
    assert [one["id"] for one in listed["data"]] == ["tiny", "alias"] and listed["object"] == "list"
    assert server.get("/v1/models/alias").json() == listed["data"][1] and listed["data"][1]["max_model_len"] == 256
    assert server.get("/v1/models/other").status_code == 404


def test_health_and_load(server):
    assert server.get("/health").json() == {"status": "ok"}
    assert server.load().keys() == {"ready", "running", "waiting", "cache_use"} and server.load()["ready"]


def test_every_request_has_an_id_that_is_logged(server):
    given = server.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert server.wait_for_line("mine-1").startswith("mine-1 GET /v1/models 200")
    made = server.complete(max_tokens=3).headers["x-request-id"]
    assert "POST /v1/completions 200 prompt tokens: " in server.wait_for_line(made)
    assert "new tokens: 3" in server.wait_for_line(made)
    strange = server.get("/v1/models", headers={"x-request-id": "a b\x7f"}).headers["x-request-id"]
    assert strange != "a b\x7f" and len(strange) == 32
    server.get("/health", headers={"x-request-id": "polled"})
    server.get("/v1/models", headers={"x-request-id": "mine-2"})
    server.wait_for_line("mine-2")
    assert not any("polled" in line for line in server.log)


def test_the_openapi_document_describes_the_bodies(server):
    document = server.get("/openapi.json").json()
    body = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    assert {"prompt", "temperature", "stop", "echo"} <= fields["properties"].keys()
    assert fields["required"] == ["model", "prompt"] and fields["additionalProperties"] is False
