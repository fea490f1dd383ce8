"""`Metrics`: the load and the speed of the server in Prometheus's format, under the names that vLLM uses."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from paddle_llm.serving.engine.texts import EngineState, Finished, Started, TextRequest, TokenAdded

_LABEL = "model_name"
_COMPLETE = ("stop", "length")
_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    640.0,
)


class Metrics:
    """What the engine does, as seen by the server.

    Args:
        model: Name of the model, the label of every value.
        load: Function that returns the state of the engine and the number of waiting texts.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, model: str, load: Callable[[], tuple[EngineState, int]]) -> None:
        self._registry, self._model = CollectorRegistry(), model
        self._gauge("num_requests_running", "Texts that are computed", lambda: load()[0].running)
        self._gauge("num_requests_waiting", "Texts that wait", lambda: load()[1])
        self._gauge("kv_cache_usage_perc", "Share of the cache that is used, 0 to 1", lambda: load()[0].cache_use)
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts whose reading has begun")
        self._new_tokens = self._counter("generation_tokens", "New tokens")
        self._success = Counter(
            "vllm:request_success", "Completed texts", [_LABEL, "finished_reason"], registry=self._registry
        )
        for reason in _COMPLETE:
            self._success.labels(model, reason)
        self._first = self._histogram("time_to_first_token_seconds", "From the request to its first new token")
        self._each = self._histogram("time_per_output_token_seconds", "Between two tokens of a text")
        self._whole = self._histogram("e2e_request_latency_seconds", "From the request to the end of its text")
        self._queue = self._histogram("request_queue_time_seconds", "From the request to the reading of its prompt")
        self._texts: dict[str, tuple[TextRequest, float, float | None]] = {}  # request, start, time of the newest token
        self._stopped: set[str] = set()

    def render(self) -> bytes:
        """Return all values as text."""
        return generate_latest(self._registry)

    def on_submit(self, request: TextRequest) -> None:
        """Record that a text was passed to the engine."""
        self._texts[request.key] = (request, time.monotonic(), None)

    def on_stop_string(self, key: str) -> None:
        """Record that a text is complete because of a stop string. The engine is asked to cancel it."""
        self._stopped.add(key)

    def on_event(self, event: Started | TokenAdded | Finished) -> None:
        """Record an event of a text."""
        known = self._texts.get(event.key)
        if known is None:
            return
        request, start, last = known
        now = time.monotonic()
        if isinstance(event, Started):
            self._queue.observe(now - start)
            self._prompt_tokens.inc(len(request.prompt))
        elif isinstance(event, Finished):
            del self._texts[event.key]
            reason = "stop" if event.key in self._stopped else event.reason
            self._stopped.discard(event.key)
            if reason in _COMPLETE:
                self._success.labels(self._model, reason).inc()
                self._whole.observe(now - start)
        elif not event.of_prompt:
            self._new_tokens.inc()
            if last is None:
                self._first.observe(now - start)
            else:
                self._each.observe(now - last)
            self._texts[event.key] = (request, start, now)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        gauge = Gauge(f"vllm:{name}", text, [_LABEL], registry=self._registry)
        gauge.labels(self._model).set_function(value)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"vllm:{name}", text, [_LABEL], registry=self._registry).labels(self._model)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"vllm:{name}", text, [_LABEL], registry=self._registry, buckets=_SECONDS).labels(self._model)
