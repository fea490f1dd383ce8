"""Limits of a real server: the key, the queue, time-outs, clients that leave, and its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess

import httpx
import pytest

from tests.helpers.processes import is_running, wait_until
from tests.serving.running_server import TEXT, RunningServer, running

KEY = "secret-key"
LONG = 40_000  # tokens; takes longer than a test


@pytest.fixture(scope="module")
def guarded(endless, tmp_path_factory):
    """A server with a key that decodes one text at a time and lets two wait."""
    file = tmp_path_factory.mktemp("key") / "key.txt"
    file.write_text(f"{KEY}\n")
    options = ("--api_key_file", file, "--max_batch_size", "1", "--max_queue", "2", "--host", "0.0.0.0")
    with running(endless, *options, "--kv_cache_gb", "0.2") as found:
        found.url = re.sub("//0.0.0.0", "//127.0.0.1", found.url)
        yield found


HEADERS = {"authorization": f"Bearer {KEY}"}


def body(server: RunningServer, **fields):
    return {"model": server.name, "prompt": TEXT, "temperature": 0, "max_tokens": LONG, **fields}


def load(server: RunningServer) -> tuple[int, int]:
    found = server.get("/ready", headers=HEADERS).json()
    return found["running"], found["waiting"]


# ---- the key --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/ready", "/openapi.json", "/nothing", "/v1/completions"])
def test_every_path_but_health_needs_the_key(guarded, path):
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}, {"authorization": KEY}):
        response = guarded.get(path, headers=headers)
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert guarded.get(path, headers=HEADERS).status_code != 401
    assert guarded.get("/health").status_code == 200


# ---- the queue ------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_429_and_clients_that_leave_free_it(guarded):
    url = f"{guarded.url}/v1/completions"
    with httpx.Client(headers=HEADERS, timeout=120) as client:
        with client.stream("POST", url, json=body(guarded, stream=True)) as first:
            lines = first.iter_lines()
            next(lines)
            second = client.build_request("POST", url, json=body(guarded, stream=True, n=2))
            response = client.send(second, stream=True)  # headers arrive before the texts
            assert response.status_code == 200
            wait_until(lambda: load(guarded) == (1, 2), 60, "two texts wait")
            refused = client.post(url, json=body(guarded, max_tokens=1))
            assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            response.close()
            wait_until(lambda: load(guarded) == (1, 0), 60, "the texts that waited are gone")
        wait_until(lambda: load(guarded) == (0, 0), 60, "the text that ran is gone")
        assert client.post(url, json=body(guarded, max_tokens=2)).status_code == 200
        assert client.post(url, json=body(guarded, n=3)).status_code == 400  # more than the queue holds


def test_a_client_that_leaves_without_a_stream_frees_its_slot(guarded):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{guarded.url}/v1/completions", json=body(guarded), headers=HEADERS, timeout=2)
    wait_until(lambda: load(guarded) == (0, 0), 60, "the text is gone")
    guarded.wait_for_line("POST /v1/completions 499")


# ---- hostile clients ------------------------------------------------------------------------------------------------


def test_a_large_body_is_413(guarded):
    large = {"model": guarded.name, "prompt": "x" * 10_000_000}
    response = guarded.post("/v1/completions", large, headers=HEADERS)
    assert response.status_code == 413 and "--max_request_mb" in response.json()["error"]["message"]

    def chunks():
        for _ in range(100):
            yield b"x" * 100_000

    response = httpx.post(f"{guarded.url}/v1/completions", content=chunks(), headers=HEADERS, timeout=60)
    assert response.status_code == 413


def test_broken_connections_do_not_disturb_others(guarded):
    host, port = guarded.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    )
    beginnings = [b"", b"\x16\x03\x01garbage\r\n\r\n", head.encode(), f"{head}Content-Length: 500\r\n\r\n{{".encode()]
    beginnings.append(b"GET /" + b"x" * 100_000)
    connections = []
    for beginning in beginnings * 10:
        connection = socket.create_connection((host, int(port)))
        connection.sendall(beginning)
        connections.append(connection)
    assert guarded.get("/health").status_code == 200
    assert guarded.post("/v1/completions", body(guarded, max_tokens=3), headers=HEADERS).status_code == 200
    for connection in connections:
        connection.close()
    assert guarded.get("/health").status_code == 200
    assert load(guarded) == (0, 0)
    assert not any("Traceback" in line for line in guarded.log)


# ---- the end --------------------------------------------------------------------------------------------------------


def test_unfinished_streams_are_completed_before_the_end(endless):
    with running(endless, "--kv_cache_gb", "0.2") as server:
        with server.stream(prompt=TEXT, max_tokens=1500) as stream:
            texts = [next(stream)["choices"][0]["text"]]
            server.process.send_signal(signal.SIGTERM)
            *events, last = stream
        assert last["choices"][0]["finish_reason"] == "length" and len(texts + events) > 500
        assert server.process.wait(60) == 0
        assert server.wait_for_line("stopped") == "stopped"
        assert not is_running(server.engine_pid)


@pytest.mark.slow
def test_requests_that_take_too_long_and_a_short_drain(endless):
    options = ("--request_timeout", "1", "--drain_timeout", "1", "--kv_cache_gb", "0.2")
    with running(endless, *options) as server:
        response = server.post("/v1/completions", body(server))
        assert response.status_code == 504 and "--request_timeout" in response.json()["error"]["message"]
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body(server, stream=True), timeout=60) as stream:
            *_, last = [line for line in stream.iter_lines() if line]
        assert '"type": "server_error"' in last and "took longer than 1 s" in last
        wait_until(lambda: server.load()["running"] == 0, 60, "the texts are gone")
        assert server.stop(signal.SIGINT) == 0


@pytest.mark.slow
def test_a_lost_engine_ends_the_server(endless):
    with running(endless, "--kv_cache_gb", "0.2") as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body(server, stream=True), timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(server.engine_pid, signal.SIGKILL)
            *_, last = [line for line in lines if line]
        assert "The engine has ended unexpectedly" in last
        assert server.process.wait(60) == 1
        assert "ended unexpectedly" in server.wait_for_line("error: ")


@pytest.mark.slow
def test_tls(program, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(made, check=True, capture_output=True)
    with running(program, "--tls_certificate", certificate, "--tls_key", key) as server:
        assert server.url.startswith("https://")
        trust = ssl.create_default_context(cafile=str(certificate))
        assert server.get("/health", verify=trust).json() == {"status": "ok"}
        with pytest.raises(httpx.ConnectError):
            server.get("/health")  # the certificate is not trusted
