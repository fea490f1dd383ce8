"""`/metrics` of a real server counts what its requests have done, under vLLM's names."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.serving.running_server import TEXT


def read(server) -> dict[tuple[str, ...], float]:
    """Return the values by name and labels besides the model's name and buckets."""
    found = {}
    response = server.get("/metrics")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain")
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == "tiny"
            if "le" not in labels:
                found[(sample.name, *labels.values())] = sample.value
    return found


def test_requests_are_counted(server):
    before = read(server)
    texts = [server.complete(max_tokens=tokens).json() for tokens in (8, 5)]
    stopped = server.complete(max_tokens=8, stop=texts[0]["choices"][0]["text"][4:6]).json()
    with server.stream(prompt=TEXT, n=2, max_tokens=3) as stream:
        list(stream)
    after = read(server)
    change = {name: value - before[name] for name, value in after.items()}
    prompt = texts[0]["usage"]["prompt_tokens"]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert change["vllm:prompt_tokens_total",] == 5 * prompt
    new = change["vllm:generation_tokens_total",]
    assert 19 + stopped["usage"]["completion_tokens"] <= new <= 19 + 8
    assert change["vllm:request_success_total", "length"] == 4
    assert change["vllm:request_success_total", "stop"] == 1
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert change[f"vllm:{name}_seconds_count",] == 5 and change[f"vllm:{name}_seconds_sum",] > 0
    assert change["vllm:time_per_output_token_seconds_count",] == new - 5
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert after[f"vllm:{name}",] == 0
