"""`EngineClient`: submits texts to the engine's process from the event loop of the server, and limits them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from paddle_llm.serving.engine.messages import Cancel, Step
from paddle_llm.serving.engine.process import EngineProcess
from paddle_llm.serving.engine.texts import EngineState, Finished, Started, TextRequest, TokenAdded
from paddle_llm.serving.errors import RequestError
from paddle_llm.serving.metrics import Metrics

_LONGEST_RETRY = 60  # seconds
_WEIGHT_OF_NEWEST = 0.2  # in the mean duration of texts


class TimedOut:
    """Mark that the time of a request is over."""


class EngineEnded:
    """Mark that the process of the engine has ended."""


class Texts:
    """The texts of one request: iterate over (index of the text, event).

    The iteration ends after the last `Finished`. Call `close` in any case.

    Args:
        client: The client.
        keys: Keys of the texts.
    """

    def __init__(self, client: EngineClient, keys: Sequence[str]) -> None:
        self._client, self._keys = client, list(keys)
        self._open = set(keys)
        self._events: asyncio.Queue[TokenAdded | Finished | TimedOut | EngineEnded] = asyncio.Queue()
        self._timer: asyncio.TimerHandle | None = None

    def __aiter__(self) -> Texts:
        return self

    async def __anext__(self) -> tuple[int, TokenAdded | Finished]:
        """Wait for the next event.

        Raises:
            RequestError: If the time of the request is over, the engine has ended, or a text cannot be computed.
        """
        if not self._open and self._events.empty():
            raise StopAsyncIteration
        event = await self._events.get()
        if isinstance(event, TimedOut):
            seconds = self._client.request_timeout
            raise RequestError(
                f"The request took longer than {seconds:g} s. Request fewer tokens, or start the server with a longer "
                "--request_timeout.",
                status=504,
            )
        if isinstance(event, EngineEnded):
            raise RequestError("The engine has ended unexpectedly. The server stops; see its log.", status=500)
        if isinstance(event, Finished):
            self._open.discard(event.key)
            if event.reason == "error":
                raise RequestError(event.message, status=500)
        return self._keys.index(event.key), event

    def complete(self, index: int) -> None:
        """End one text because of a stop string. Its `Finished` follows."""
        key = self._keys[index]
        if key in self._open:
            self._client.metrics.on_stop_string(key)
            self._client.cancel(key)

    def close(self) -> None:
        """End all texts that are not finished."""
        if self._timer is not None:
            self._timer.cancel()
        for key in self._open:
            self._client.cancel(key)
        self._open.clear()

    def put(self, event: TokenAdded | Finished | TimedOut | EngineEnded) -> None:
        """Add an event. The client calls it."""
        self._events.put_nowait(event)

    def start_timer(self, seconds: float) -> None:
        """End the iteration with an error after some seconds."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self.put, TimedOut())


class EngineClient:
    """Passes texts to the engine and their events to the requests.

    Args:
        process: The process of the engine.
        max_queue: Maximum number of texts that wait for the engine.
        max_batch_size: Number of texts that the engine decodes together.
        request_timeout: Maximum duration of a request, in seconds.
        model: Name of the model, for the metrics.

    Attributes:
        metrics: Load and speed of the server.
        state: Load of the engine after its newest step.
        has_ended: Whether the process of the engine has ended.
        ended: Event that is set when it ends; after `start`.
    """

    def __init__(
        self, process: EngineProcess, *, max_queue: int, max_batch_size: int, request_timeout: float, model: str
    ) -> None:
        self._process, self._max_queue, self._max_batch_size = process, max_queue, max_batch_size
        self.request_timeout = request_timeout
        self.state = EngineState(0, 0, 0.0)
        self.metrics = Metrics(model, lambda: (self.state, self.queued))
        self.has_ended = False
        self._texts: dict[str, Texts] = {}
        self._queued: set[str] = set()
        self._submitted: dict[str, float] = {}  # times of unfinished texts
        self._mean_duration = 1.0

    def start(self) -> None:
        """Receive the events of the engine in the running event loop."""
        loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()

        def pass_on(step: Step) -> None:
            loop.call_soon_threadsafe(self._dispatch, step)

        def end() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._end)

        self._process.start_threads(pass_on, end)

    @property
    def queued(self) -> int:
        """Number of texts that wait for the engine."""
        return len(self._queued)

    @property
    def unfinished(self) -> int:
        """Number of texts that are not finished."""
        return len(self._texts)

    def submit(self, requests: Sequence[TextRequest]) -> Texts:
        """Pass the texts of one request to the engine.

        Args:
            requests: Texts; their keys are unique among unfinished texts.

        Raises:
            RequestError: If the queue is full, or the engine has ended.
        """
        if self.has_ended:
            raise RequestError("The engine has ended unexpectedly. The server stops; see its log.", status=503)
        if len(requests) > self._max_queue:
            raise RequestError(
                f"The request is for {len(requests)} texts, and the queue of the server holds {self._max_queue}. Use fewer "
                "prompts or a smaller n."
            )
        if len(self._queued) + len(requests) > self._max_queue:
            raise RequestError(
                f"{len(self._queued)} texts are waiting, and the queue of the server holds {self._max_queue}. Try again later.",
                status=429,
                code="queue_full",
                retry_after=self._seconds_to_retry(),
            )
        keys = [request.key for request in requests]
        texts = Texts(self, keys)
        now = time.monotonic()
        for request in requests:
            self._texts[request.key] = texts
            self._submitted[request.key] = now
            self._queued.add(request.key)
            self.metrics.on_submit(request)
            self._process.send(request)
        texts.start_timer(self.request_timeout)
        return texts

    def cancel(self, key: str) -> None:
        """End a text."""
        if key in self._texts:
            self._process.send(Cancel(key))

    def _dispatch(self, step: Step) -> None:
        self.state = step.state
        for event in step.events:
            texts = self._texts.get(event.key)
            if texts is None:
                continue
            self.metrics.on_event(event)
            if isinstance(event, Started):
                self._queued.discard(event.key)
                continue
            if isinstance(event, Finished):
                self._forget(event)
            texts.put(event)

    def _forget(self, event: Finished) -> None:
        del self._texts[event.key]
        self._queued.discard(event.key)
        duration = time.monotonic() - self._submitted.pop(event.key)
        if event.reason in ("stop", "length"):
            self._mean_duration += _WEIGHT_OF_NEWEST * (duration - self._mean_duration)

    def _seconds_to_retry(self) -> int:
        """Return after how many seconds the queue has probably become shorter."""
        batches = math.ceil(len(self._queued) / self._max_batch_size)
        return max(1, min(_LONGEST_RETRY, math.ceil(batches * self._mean_duration)))

    def _end(self) -> None:
        self.has_ended = True
        for texts in set(self._texts.values()):
            texts.put(EngineEnded())
        self._texts.clear()
        self._queued.clear()
        self.ended.set()
