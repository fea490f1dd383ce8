"""The application: routes, and errors in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from paddle_llm import __version__
from paddle_llm.serving.client import EngineClient
from paddle_llm.serving.errors import RequestError
from paddle_llm.serving.http.answers import Answers
from paddle_llm.serving.http.chat import ChatFormat, chat_choices, encode_messages
from paddle_llm.serving.http.completions import CompletionFormat, completion_choices, encode_prompts
from paddle_llm.serving.http.guard import error_response
from paddle_llm.serving.http.schemas import ChatRequest, CompletionRequest
from paddle_llm.serving.model import ServedModel

_LEFT = 499  # nginx's status of a request whose client has left; nobody receives it
_OTHER_TYPE = ("string_type", "list_type", "int_type")  # kinds of problems of a value of another type
T = TypeVar("T")


@dataclass
class Server:
    """What the endpoints share.

    Attributes:
        model: The model.
        client: Client of the engine.
        created: Time at which the model was loaded, in seconds since 1970.
        encoding: Thread that encodes prompts, so that a long one does not delay other requests.
    """

    model: ServedModel
    client: EngineClient
    created: int = field(default_factory=lambda: int(time.time()))
    encoding: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "encoding"))

    async def encode(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function that encodes prompts in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self.encoding, function, *arguments)

    def check_model(self, name: str) -> None:
        """Check the name of the model.

        Raises:
            RequestError: If it is another one.
        """
        if name not in self.model.names:
            known = ", ".join(self.model.names)
            raise RequestError(
                f"The model {name[:200]!r} does not exist. Use {known}.",
                status=404,
                param="model",
                code="model_not_found",
            )


class EventStream(StreamingResponse):
    """A stream of server-sent events that ends its texts when the client leaves.

    Args:
        answers: The texts.
    """

    def __init__(self, answers: Answers) -> None:
        super().__init__(answers.events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.close()
            scope["state"]["details"] = _details(self._answers)


def create_app(server: Server) -> FastAPI:
    """Return the application."""
    # The pages /docs and /redoc of FastAPI load scripts from other servers.
    app = FastAPI(title="paddle-llm serve", version=__version__, docs_url=None, redoc_url=None)
    app.state.server = server
    _add_state_routes(app, server)
    _add_generation_routes(app, server)

    @app.exception_handler(RequestError)
    async def _on_request_error(request: Request, error: RequestError) -> Response:
        return _error(error)

    @app.exception_handler(RequestValidationError)
    async def _on_invalid(request: Request, error: RequestValidationError) -> Response:
        return _error(describe_invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def _on_http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return _error(RequestError(f"{request.url.path} does not exist. See /openapi.json.", status=404))
        if error.status_code == 405:
            return _error(RequestError(f"{request.url.path} does not allow {request.method}.", status=405))
        return _error(RequestError(str(error.detail), status=error.status_code))

    return app


def _add_state_routes(app: FastAPI, server: Server) -> None:
    @app.get("/health")
    async def _health() -> JSONResponse:
        """Answer as long as the engine runs."""
        if server.client.has_ended:
            return JSONResponse({"status": "the engine has ended"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def _ready() -> JSONResponse:
        """Answer with the load of the engine."""
        state, client = server.client.state, server.client
        load = {"running": state.running, "waiting": client.queued, "cache_use": round(state.cache_use, 4)}
        return JSONResponse({"ready": not client.has_ended, **load}, 503 if client.has_ended else 200)

    @app.get("/metrics")
    async def _metrics() -> Response:
        """Return the load and the speed of the server in Prometheus's format."""
        return Response(server.client.metrics.render(), media_type=server.client.metrics.content_type)

    @app.get("/v1/models")
    async def _models() -> JSONResponse:
        """List the names of the model."""
        return JSONResponse({"object": "list", "data": [_model_object(server, name) for name in server.model.names]})

    @app.get("/v1/models/{name:path}")
    async def _model(name: str) -> JSONResponse:
        """Describe the model."""
        server.check_model(name)
        return JSONResponse(_model_object(server, name))


def _add_generation_routes(app: FastAPI, server: Server) -> None:
    @app.post("/v1/completions")
    async def _complete(body: CompletionRequest, request: Request) -> Response:
        """Continue prompts."""
        server.check_model(body.model)
        prompts = await server.encode(encode_prompts, server.model, body)
        identifier = f"cmpl-{uuid.uuid4().hex}"
        choices = completion_choices(server.model, body, prompts, identifier)
        answers = Answers(
            server.client,
            CompletionFormat(server.model, identifier),
            choices,
            includes_usage=body.includes_usage,
            prompt_tokens=sum(map(len, prompts)),
        )
        return await _respond(request, answers, bool(body.stream))

    @app.post("/v1/chat/completions")
    async def _chat(body: ChatRequest, request: Request) -> Response:
        """Answer the last question of a conversation."""
        server.check_model(body.model)
        prompt = await server.encode(encode_messages, server.model, body)
        identifier = f"chatcmpl-{uuid.uuid4().hex}"
        answers = Answers(
            server.client,
            ChatFormat(server.model, identifier),
            chat_choices(server.model, body, prompt, identifier),
            includes_usage=body.includes_usage,
            prompt_tokens=len(prompt),
        )
        return await _respond(request, answers, bool(body.stream))


async def _respond(request: Request, answers: Answers, stream: bool) -> Response:
    """Return a stream or the whole response. If the client leaves in the meantime, its texts end."""
    if stream:
        return EventStream(answers)
    whole = asyncio.create_task(answers.whole())
    left = asyncio.create_task(_wait_until_left(request))
    try:
        await asyncio.wait((whole, left), return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(whole.result()) if whole.done() else Response(status_code=_LEFT)
    finally:
        for task in (whole, left):
            task.cancel()
        answers.close()
        request.scope["state"]["details"] = _details(answers)


async def _wait_until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _details(answers: Answers) -> str:
    usage = answers.usage
    return f" prompt tokens: {usage['prompt_tokens']} new tokens: {usage['completion_tokens']}"


def _model_object(server: Server, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": server.created,
        "owned_by": "paddle_llm",
        "max_model_len": server.model.max_length,
    }


def _error(error: RequestError) -> Response:
    body, headers = error_response(error)
    response = Response(body, error.status)
    response.raw_headers = headers
    return response


def describe_invalid(errors: Any) -> RequestError:
    """Return the error of a body that does not fit its schema. Its first problem is named."""
    first = _most_specific(errors)
    path = [str(part) for part in first["loc"][1:]]
    context = first.get("ctx") or {}
    param = str(context["field"]) if "field" in context else path[0] if path else None
    kind = first["type"]
    if kind == "json_invalid":
        return RequestError(f"The body is not JSON: {context.get('error', first['msg'])}. Send a JSON object.")
    if kind == "unsupported":
        return RequestError(first["msg"], param=param, code="unsupported_parameter")
    name = ".".join(part for part in path if not part.startswith(("list[", "constrained", "str", "nullable")))
    if kind == "extra_forbidden":
        return RequestError(f"The field {name} is unknown. Remove it.", param=name, code="unknown_parameter")
    if kind == "missing":
        return RequestError(f"The field {name or 'body'} is missing. Add it.", param=param)
    return RequestError(f"{name or 'The body'}: {first['msg']}.", param=param)


def _most_specific(errors: Any) -> dict[str, Any]:
    """Return the first problem. Of a field that may have several types, the problem within the type that was given."""
    same = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    within = [error for error in same if error["type"] not in _OTHER_TYPE]
    if within or len(same) == 1:
        return dict((within or same)[0])
    messages = dict.fromkeys(error["msg"].removeprefix("Input should be ") for error in same)
    return {**same[0], "loc": same[0]["loc"][:2], "msg": f"Input should be {' or '.join(messages)}"}
