"""`serve`: start the engine, listen, and answer requests until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.core.signals import interrupt_on_sigterm
from paddle_llm.export.targets.output_folder import human
from paddle_llm.generation.static.program import is_static
from paddle_llm.serving.engine.process import EngineProcess
from paddle_llm.serving.model import open_served_model
from paddle_llm.serving.options import ServeOptions

_LIBRARIES = ("fastapi", "uvicorn", "prometheus_client")
_SECONDS_WITHOUT_REQUEST = 30.0  # after which a connection is closed


class EngineLost(Exception):
    """The process of the engine has ended while the server was running."""


def serve(options: ServeOptions) -> None:
    """Answer requests until SIGINT or SIGTERM, then complete those that have begun.

    Args:
        options: Options of the server.

    Raises:
        UserError: If a library is missing, the model cannot be loaded, or the address is not available.
        EngineLost: If the process of the engine ends.
    """
    check_libraries()
    options.check()
    _check_folder(options)
    with _listener(options) as listener, tempfile.TemporaryDirectory(prefix="paddle-llm-serve-") as work_folder:
        process = EngineProcess(options.engine, Path(work_folder))
        try:
            with interrupt_on_sigterm():
                ready = process.wait_until_ready()
                model = open_served_model(ready, options)
                for file in Path(work_folder).glob("program/*.pdiparams"):
                    file.unlink()  # the engine has read it
            say(
                f"engine: process {process.pid}, cache of {human(ready.cache_bytes)} for {ready.cache_tokens} tokens, "
                f"at most {ready.max_length} tokens per text, {ready.threads} threads"
            )
            from paddle_llm.serving.client import EngineClient  # needs the extra `serve`

            client = EngineClient(
                process,
                max_queue=options.max_queue,
                max_batch_size=options.engine.max_batch_size,
                request_timeout=options.request_timeout,
                model=model.names[0],
            )
            from paddle_llm.serving.http.app import Server

            asyncio.run(_serve(Server(model, client), listener, options))
        finally:
            process.stop()


def check_libraries() -> None:
    """Check that the extra `serve` is installed.

    Raises:
        UserError: If a library is missing.
    """
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise UserError(f"paddle-llm serve needs {', '.join(missing)}. Install them: pip install 'paddle_llm[serve]'.")


def _check_folder(options: ServeOptions) -> None:
    """Raise UserError for what can be seen without loading the model."""
    engine = options.engine
    folder = engine.folder.expanduser()
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder. Give a model folder, the output folder of a run, or a static export."
        )
    if is_static(folder) and engine.adapter is not None:
        raise UserError(
            f"--adapter does not apply to the static export {folder}: its weights are fixed. Export the model with its --adapter."
        )
    if is_static(folder) and engine.allow_pickle:
        raise UserError(
            f"--allow_pickle does not apply to the static export {folder}: it contains no pickles. Drop the option."
        )


@contextlib.contextmanager
def _listener(options: ServeOptions) -> Iterator[socket.socket]:
    """Open the listening socket before the model is loaded, so that a port that is in use is reported at once.

    Raises:
        UserError: If the address is not available.
    """
    host, port = options.host, options.port
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"cannot listen on {host}:{port}: {reason}. Choose another --port (0: any free port)."
            ) from None
        yield listener


async def _serve(server: Any, listener: socket.socket, options: ServeOptions) -> None:
    import uvicorn

    from paddle_llm.serving.http.app import create_app
    from paddle_llm.serving.http.guard import Guard

    _raise_file_limit()
    server.client.start()
    app = Guard(create_app(server), api_key=options.api_key, max_body=int(options.max_request_mb * 1e6))
    config = uvicorn.Config(
        app,
        http=_protocol(),
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(options.drain_timeout)),
        ssl_certfile=options.tls_certificate,
        ssl_keyfile=options.tls_key,
    )
    http = uvicorn.Server(config)
    scheme = "http" if options.tls_certificate is None else "https"
    host, port = listener.getsockname()[:2]
    say(f"serving {', '.join(server.model.names)} at {scheme}://{f'[{host}]' if ':' in host else host}:{port}")
    ended = asyncio.create_task(_stop_with_engine(server.client, http))
    # uvicorn raises the signal again at the end. The server has done what it asks for by then.
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        await http.serve([listener])
    finally:
        ended.cancel()
        server.encoding.shutdown(wait=False, cancel_futures=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if server.client.has_ended:
        raise EngineLost
    unfinished = server.client.unfinished
    say(
        "stopped" if not unfinished else f"stopped after {options.drain_timeout:g} s with {unfinished} unfinished texts"
    )


async def _stop_with_engine(client: Any, http: Any) -> None:
    await client.ended.wait()
    http.should_exit = True


def _protocol() -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol, which here also closes connections on which no request arrives."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """HTTP with a limit of the time before the first request."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # The first bytes of a request end the timer.
            self.timeout_keep_alive_task = self.loop.call_later(
                _SECONDS_WITHOUT_REQUEST, self.timeout_keep_alive_handler
            )

    return Protocol


def _raise_file_limit() -> None:
    """Allow as many connections as the system permits: each one takes a file descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
