"""`Guard`: what happens to every request before its endpoint: its id, the API key, limits of its body, and the log."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
import uuid
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paddle_llm.core.console import say
from paddle_llm.serving.errors import RequestError

OPEN_PATH = "/health"
_SILENT = ("/health", "/ready", "/metrics")  # polled by other programs, so that they are not logged
_SECONDS_FOR_BODY = 30.0
_ID = re.compile(r"[\w.:-]{1,100}")


class Guard:
    """An ASGI application that surrounds another one.

    Args:
        app: The other application.
        api_key: Key that all requests except /health need; None: no key.
        max_body: Maximum size of a body, in bytes.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, max_body: int) -> None:
        self._app, self._max_body = app, max_body
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        identifier = _request_id(headers.get(b"x-request-id", b""))
        scope.setdefault("state", {})["request_id"] = identifier
        started, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", identifier.encode())]}
            await send(message)

        try:
            problem = self._problem(scope["path"], headers)
            if problem is not None:
                await send_error(problem, send_with_id)
            else:
                await self._app(scope, _Body(receive, self._max_body), send_with_id)
        finally:
            if scope["path"] not in _SILENT:
                details = scope["state"].get("details", "")
                seconds = time.monotonic() - started
                path = ascii(scope["path"])[1:-1]
                say(f"{identifier} {scope['method']} {path} {status or 'no response'}{details} {seconds:.2f} s")

    def _problem(self, path: str, headers: dict[bytes, bytes]) -> RequestError | None:
        if self._key is not None and path != OPEN_PATH:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
                problem = "The API key is wrong" if key else "The API key is missing"
                return RequestError(
                    f"{problem}. Send it in the header: Authorization: Bearer KEY.", status=401, code="invalid_api_key"
                )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body:
            return _too_large(self._max_body)
        return None


class _Body:
    """Receives a body up to a size and within a time."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._size, self._is_complete = 0, False

    async def __call__(self) -> Message:
        if self._is_complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), _SECONDS_FOR_BODY)
        except asyncio.TimeoutError:
            raise HTTPException(408, "The body did not arrive in time. Send it faster.") from None
        self._size += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self._size > self._limit:
            error = _too_large(self._limit)
            raise HTTPException(error.status, error.message)
        return message


def _too_large(limit: int) -> RequestError:
    return RequestError(
        f"The body is larger than {limit / 1e6:g} MB. Send less, or start the server with a larger --max_request_mb.",
        status=413,
    )


def _request_id(given: bytes) -> str:
    """Return the id that the client gave, if it can be logged, else a new one."""
    text = given.decode("latin-1")
    return text if _ID.fullmatch(text) and text.isascii() else uuid.uuid4().hex


def error_response(error: RequestError) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return body and headers of an error."""
    body = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    return body, headers


async def send_error(error: RequestError, send: Send) -> None:
    """Send an error as the response."""
    body, headers = error_response(error)
    start: dict[str, Any] = {"type": "http.response.start", "status": error.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
